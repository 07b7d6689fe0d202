// A look at SQLite's write-ahead log before SQLite opens it.
//
// SQLite takes the first frame whose checksum is wrong for the end of the log and drops, without a word, every
// transaction behind it. That is right for the torn tail of a crash and wrong for a flipped bit in the middle.
// File format: https://sqlite.org/fileformat2.html section 4.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"

namespace usblease::store {

inline constexpr std::uint32_t kPageBytes = 4096;
inline constexpr std::uint64_t kWalHeaderBytes = 32;
inline constexpr std::uint64_t kWalFrameBytes = 24 + kPageBytes;

struct WalState {
  std::uint64_t committed_end = 0;  // end of the last whole transaction, in bytes; 0: the log is absent or empty
  bool leftover = false;            // behind it lie frames of a transaction that was never finished
};

// kRefused: the log is damaged where no crash could have done it: its header, or a transaction behind which a later
// one begins (each is on the disk before the next is written). kInternal: it cannot be read.
// Damage in the last transaction looks like a crash's torn tail; the mark (sqlite_files.h) tells them apart.
Result<WalState> check_wal(const std::string& path);

// Makes what `leftover` names unrecognisable, in place: else it would look like damage behind the next transactions.
Result<void> clear_wal_leftover(const std::string& path, const WalState& state);

}  // namespace usblease::store
