#include "tests/unit/common/check_run.h"

#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace usblease::test {

TemporaryDirectory::TemporaryDirectory() {
  std::array<char, 32> name{"/tmp/usblease-test-XXXXXX"};
  if (mkdtemp(name.data()) == nullptr) ck_abort_msg("mkdtemp failed");
  path_ = name.data();
  ck_assert_int_eq(chmod(path_.c_str(), 0755), 0);
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryDirectory::write(const std::string& name, const std::string& content) const {
  std::ofstream(file(name), std::ios::binary) << content;
  return file(name);
}

}  // namespace usblease::test
