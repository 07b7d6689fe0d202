#include "daemon/store/wal_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "common/fd.h"
#include "daemon/store/bytes.h"

namespace usblease::store {
namespace {

constexpr std::uint32_t kMagicLittleEndian = 0x377f0682;  // the endianness of the checksum's words
constexpr std::uint32_t kMagicBigEndian = 0x377f0683;
constexpr std::uint32_t kWalFormat = 3'007'000;
constexpr std::size_t kFrameHeaderBytes = 24;

struct Checksum {
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  bool operator==(const Checksum&) const = default;
};

struct Header {
  bool big_endian = false;
  std::string_view salts;
  Checksum checksum;
};

std::uint32_t word(std::string_view bytes, std::size_t at, bool big_endian) {
  const auto value = get_be<std::uint32_t>(bytes, at);
  return big_endian ? value : __builtin_bswap32(value);
}

Checksum add(Checksum sum, std::string_view bytes, bool big_endian) {
  for (std::size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    sum.a += word(bytes, at, big_endian) + sum.b;
    sum.b += word(bytes, at + 4, big_endian) + sum.a;
  }
  return sum;
}

Checksum stored_checksum(std::string_view bytes, std::size_t at) {
  return {get_be<std::uint32_t>(bytes, at), get_be<std::uint32_t>(bytes, at + 4)};
}

tl::unexpected<Error> damaged(const std::string& path, const std::string& what) {
  return fail(ErrorCode::kRefused, path + " is damaged: " + what);
}

// Up to `size` bytes from `offset`; fewer only at the end of the file.
Result<std::string> read_at(int fd, const std::string& path, std::uint64_t offset, std::size_t size) {
  std::string out(size, '\0');
  std::size_t have = 0;
  while (have < size) {
    const ssize_t got = pread(fd, out.data() + have, size - have, static_cast<off_t>(offset + have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("cannot read " + path, errno);
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  out.resize(have);
  return out;
}

bool all_zero(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char byte) { return byte == 0; });
}

// Room that was reserved for a log which never began. SQLite writes and syncs the header before any frame, so a
// header of zeros with something behind it is damage.
Result<WalState> check_unused(int fd, const std::string& path, std::uint64_t size) {
  constexpr std::size_t kChunk = 65'536;
  for (std::uint64_t at = 0; at < size; at += kChunk) {
    const auto chunk = read_at(fd, path, at, kChunk);
    if (!chunk) return tl::unexpected(chunk.error());
    if (!all_zero(*chunk)) return damaged(path, "its header is empty but transactions follow");
  }
  return WalState{};
}

Result<Header> parse_header(std::string_view bytes, const std::string& path) {
  const auto magic = get_be<std::uint32_t>(bytes, 0);
  if (magic != kMagicLittleEndian && magic != kMagicBigEndian) return damaged(path, "its first bytes are not a log's");
  Header header{magic == kMagicBigEndian, bytes.substr(16, 8), stored_checksum(bytes, 24)};
  if (add({}, bytes.substr(0, 24), header.big_endian) != header.checksum) {
    return damaged(path, "the checksum of its header does not match");
  }
  if (get_be<std::uint32_t>(bytes, 4) != kWalFormat || get_be<std::uint32_t>(bytes, 8) != kPageBytes) {
    return damaged(path, "it is a log of another format");
  }
  return header;
}

bool of_this_log(std::string_view frame, const Header& header) {
  return frame.size() >= kFrameHeaderBytes && frame.substr(8, 8) == header.salts;
}

bool ends_transaction(std::string_view frame) { return get_be<std::uint32_t>(frame, 4) != 0; }

// Behind the first frame that does not check. One unfinished transaction may lie there, in any state; but where one
// transaction ends and a further frame of this log follows, the former was synced, so it should have checked.
Result<bool> scan_leftover(int fd, const std::string& path, const Header& header, std::uint64_t from) {
  bool leftover = false;
  bool ended = false;
  for (std::uint64_t at = from;; at += kWalFrameBytes) {
    const auto frame = read_at(fd, path, at, kFrameHeaderBytes);
    if (!frame) return tl::unexpected(frame.error());
    if (frame->size() < kFrameHeaderBytes) return leftover;
    if (!of_this_log(*frame, header)) continue;
    leftover = true;
    if (ended)
      return damaged(path,
                     "the transaction at byte " + std::to_string(from) + " does not check, and later ones follow");
    ended = ends_transaction(*frame);
  }
}

Result<UniqueFd> open_log(const std::string& path, int flags) {
  UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC));
  if (!fd) return fail_errno("cannot open " + path, errno);
  return fd;
}

}  // namespace

Result<WalState> check_wal(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0 && errno == ENOENT) return WalState{};
  const auto fd = open_log(path, O_RDONLY);
  if (!fd) return tl::unexpected(fd.error());
  struct stat info {};
  if (fstat(fd->get(), &info) != 0) return fail_errno("cannot read " + path, errno);
  const auto size = static_cast<std::uint64_t>(info.st_size);
  const auto first = read_at(fd->get(), path, 0, kWalHeaderBytes);
  if (!first) return tl::unexpected(first.error());
  if (all_zero(*first)) return check_unused(fd->get(), path, size);
  if (first->size() < kWalHeaderBytes) return damaged(path, "it is cut off within its header");
  const auto header = parse_header(*first, path);
  if (!header) return tl::unexpected(header.error());

  WalState state{kWalHeaderBytes, false};
  Checksum sum = header->checksum;
  std::uint64_t at = kWalHeaderBytes;
  for (;; at += kWalFrameBytes) {
    const auto frame = read_at(fd->get(), path, at, kWalFrameBytes);
    if (!frame) return tl::unexpected(frame.error());
    if (frame->size() < kWalFrameBytes || !of_this_log(*frame, *header)) break;
    sum = add(sum, std::string_view(*frame).substr(0, 8), header->big_endian);
    sum = add(sum, std::string_view(*frame).substr(kFrameHeaderBytes), header->big_endian);
    if (sum != stored_checksum(*frame, 16)) break;
    if (ends_transaction(*frame)) state.committed_end = at + kWalFrameBytes;
  }
  const auto leftover = scan_leftover(fd->get(), path, *header, at);
  if (!leftover) return tl::unexpected(leftover.error());
  state.leftover = *leftover || at != state.committed_end;
  return state;
}

Result<void> clear_wal_leftover(const std::string& path, const WalState& state) {
  if (!state.leftover) return {};
  const auto fd = open_log(path, O_RDWR);
  if (!fd) return tl::unexpected(fd.error());
  const auto first = read_at(fd->get(), path, 0, kWalHeaderBytes);
  if (!first) return tl::unexpected(first.error());
  const auto header = parse_header(*first, path);
  if (!header) return tl::unexpected(header.error());
  const std::string zeros(kFrameHeaderBytes, '\0');
  for (std::uint64_t at = state.committed_end;; at += kWalFrameBytes) {
    const auto frame = read_at(fd->get(), path, at, kFrameHeaderBytes);
    if (!frame) return tl::unexpected(frame.error());
    if (frame->size() < kFrameHeaderBytes) break;
    if (!of_this_log(*frame, *header)) continue;
    if (pwrite(fd->get(), zeros.data(), zeros.size(), static_cast<off_t>(at)) != static_cast<ssize_t>(zeros.size())) {
      return fail_errno("cannot write " + path, errno);
    }
  }
  if (fdatasync(fd->get()) != 0) return fail_errno("cannot sync " + path, errno);
  return {};
}

}  // namespace usblease::store
