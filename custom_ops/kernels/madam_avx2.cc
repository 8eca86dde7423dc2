#if defined(__x86_64__)
#define kMadamPlain kMadamAvx2
#include "kernels/madam_plain.cc"
#endif
