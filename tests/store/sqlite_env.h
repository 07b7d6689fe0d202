// What the tests of the SQLite store share: a directory, its three files as an image, and a Backend.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/store/sqlite_store.h"
#include "tests/store/contract.h"

namespace usblease::store_test {

// A directory of its own that goes away with it. `in_memory`: where syncs cost nothing, if there is such a place.
class TempDir {
 public:
  explicit TempDir(bool in_memory);
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

// The files of one database by suffix ("", "-wal", ".mark"); those that are absent are not in it. Taken while a store
// is open and quiet, it is what a kill -9 leaves.
using Image = std::map<std::string, std::string>;
Image take_image(const std::string& database);
void put_image(const std::string& database, const Image& image);  // replaces what is there

class SqliteBackend final : public Backend {
 public:
  explicit SqliteBackend(bool in_memory = true) : dir_(in_memory), path_(dir_.file("0.db")) {}
  std::unique_ptr<store::Store> open(store::Executor executor) override;
  void end(std::unique_ptr<store::Store> store, bool clean) override;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  TempDir dir_;
  std::string path_;
  int kills_ = 0;
};

// Opens and fails the test when it cannot.
std::unique_ptr<store::Store> open_store(const std::string& path, TestLoop& loop);

// Opens; it must be refused with kRefused and a message that names the path and holds `word`. Returns the message.
std::string expect_refused_open(const std::string& path, const std::string& word, const std::string& cluster_id = "");

store::TxnResult commit(store::Store& store, TestLoop& loop, store::Txn txn);
store::ReadResult read_all(store::Store& store, TestLoop& loop);

// Runs one program's suite; meson test shows its output.
int run_suite(Suite* suite);

}  // namespace usblease::store_test
