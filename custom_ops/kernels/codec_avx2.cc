#if defined(__x86_64__)
#define kCodecPlain kCodecAvx2
#include "kernels/codec_plain.cc"
#endif
