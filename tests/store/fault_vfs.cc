#include "tests/store/fault_vfs.h"

#include <sqlite3.h>

#include <atomic>

#include "tests/store/with_check.h"

namespace usblease::store_test {
namespace {

std::atomic<FaultRule> g_rule{nullptr};
sqlite3_vfs* g_real_vfs = nullptr;

// The real file lies behind ours, in the memory that SQLite gives for both.
struct File {
  sqlite3_file base;
  bool log;
};
constexpr int kRealOffset = (static_cast<int>(sizeof(File)) + 15) / 16 * 16;

sqlite3_file* real(sqlite3_file* file) {
  return reinterpret_cast<sqlite3_file*>(reinterpret_cast<char*>(file) + kRealOffset);
}

int fault(sqlite3_file* file, Operation operation) {
  const FaultRule rule = g_rule;
  return rule == nullptr ? SQLITE_OK : rule(operation, reinterpret_cast<File*>(file)->log);
}

int close_file(sqlite3_file* file) { return real(file)->pMethods->xClose(real(file)); }
int read_file(sqlite3_file* file, void* out, int size, sqlite3_int64 at) {
  if (const int rc = fault(file, Operation::kRead); rc != SQLITE_OK) return rc;
  return real(file)->pMethods->xRead(real(file), out, size, at);
}
int write_file(sqlite3_file* file, const void* bytes, int size, sqlite3_int64 at) {
  if (const int rc = fault(file, Operation::kWrite); rc != SQLITE_OK) return rc;
  return real(file)->pMethods->xWrite(real(file), bytes, size, at);
}
int truncate_file(sqlite3_file* file, sqlite3_int64 size) {
  if (const int rc = fault(file, Operation::kTruncate); rc != SQLITE_OK) return rc;
  return real(file)->pMethods->xTruncate(real(file), size);
}
int sync_file(sqlite3_file* file, int flags) {
  if (const int rc = fault(file, Operation::kSync); rc != SQLITE_OK) return rc;
  return real(file)->pMethods->xSync(real(file), flags);
}
int file_size(sqlite3_file* file, sqlite3_int64* size) { return real(file)->pMethods->xFileSize(real(file), size); }
int lock_file(sqlite3_file* file, int level) { return real(file)->pMethods->xLock(real(file), level); }
int unlock_file(sqlite3_file* file, int level) { return real(file)->pMethods->xUnlock(real(file), level); }
int check_reserved(sqlite3_file* file, int* out) { return real(file)->pMethods->xCheckReservedLock(real(file), out); }
int control(sqlite3_file* file, int op, void* arg) { return real(file)->pMethods->xFileControl(real(file), op, arg); }
int sector_size(sqlite3_file* file) { return real(file)->pMethods->xSectorSize(real(file)); }
int characteristics(sqlite3_file* file) { return real(file)->pMethods->xDeviceCharacteristics(real(file)); }

// Version 1: no shared memory, which the store does not use.
const sqlite3_io_methods kMethods = {1,         close_file,  read_file,      write_file,  truncate_file,
                                     sync_file, file_size,   lock_file,      unlock_file, check_reserved,
                                     control,   sector_size, characteristics};

int open_file(sqlite3_vfs* /*vfs*/, sqlite3_filename name, sqlite3_file* file, int flags, int* out_flags) {
  auto* const ours = reinterpret_cast<File*>(file);
  ours->log = (flags & SQLITE_OPEN_WAL) != 0;
  const int rc = g_real_vfs->xOpen(g_real_vfs, name, real(file), flags, out_flags);
  file->pMethods = rc == SQLITE_OK ? &kMethods : nullptr;
  return rc;
}

}  // namespace

void install_fault_vfs() {
  static sqlite3_vfs vfs;
  g_real_vfs = sqlite3_vfs_find(nullptr);
  vfs = *g_real_vfs;
  vfs.zName = "fault";
  vfs.szOsFile = kRealOffset + g_real_vfs->szOsFile;
  vfs.xOpen = open_file;
  ck_assert_int_eq(sqlite3_vfs_register(&vfs, 1), SQLITE_OK);
}

void set_fault_rule(FaultRule rule) { g_rule = rule; }

}  // namespace usblease::store_test
