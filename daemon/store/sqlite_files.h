// The two small files beside the database: the lock that keeps a second process out, and the mark that remembers how
// far the database has come.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::store {

// Takes PATH.lock for this process, for as long as the descriptor lives. kRefused, with the PID of the process that
// has it.
Result<UniqueFd> take_lock(const std::string& database);

// What PATH.mark says: the database of this id had reached this revision. It is written after each commit, before
// the caller hears of it, without a sync: it must outlive this process, not the machine. So a database behind its mark
// has lost transactions; a mark behind its database has only seen a power loss.
struct Mark {
  std::string database_id;
  std::uint64_t revision = 0;
};

// nullopt: there is none. kRefused: it is damaged.
Result<std::optional<Mark>> read_mark(const std::string& path);

class MarkFile {
 public:
  // Replaces PATH.mark by a new, synced file.
  static Result<MarkFile> create(const std::string& path, const Mark& mark);

  // The one that is there, for writing in place: needs no room on the disk.
  static Result<MarkFile> open(const std::string& path);

  Result<void> write(const Mark& mark);
  Result<void> sync();

 private:
  MarkFile(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  std::string path_;
  UniqueFd fd_;
};

// Syncs the directory that holds `path`, so that its name survives a power loss.
Result<void> sync_directory_of(const std::string& path);

}  // namespace usblease::store
