// What the unit tests share: checks that are counted, and the line at the end.

#ifndef TF_LNS_TESTS_CHECK_H_
#define TF_LNS_TESTS_CHECK_H_

#include <cstdio>
#include <string>

namespace lns {

inline int passed = 0, failed = 0;

inline void Check(bool good, const std::string& what) {
  if (good) {
    ++passed;
    return;
  }
  if (++failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

// The exit code.
inline int Report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}

}  // namespace lns

#endif  // TF_LNS_TESTS_CHECK_H_
