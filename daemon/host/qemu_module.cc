#include "daemon/host/qemu_module.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>
#include <vector>

#include "common/fd.h"
#include "common/text.h"

namespace usblease::host {
namespace {

constexpr std::size_t kHeadersMax = 64;
constexpr std::size_t kNotesBytesMax = 64UL * 1024;
constexpr std::size_t kMapsLinesMax = 100'000;
constexpr std::size_t kIdsMax = 64;
constexpr off_t kModuleBytesMax = 16L * 1024 * 1024;
constexpr std::string_view kStamp = "qemu_stamp_";
constexpr std::size_t kStampDigits = 40;
constexpr const char* kInstall = "`usblease host install-qemu-module` installs them";

bool read_exactly(int fd, void* out, std::size_t size, std::uint64_t offset) {
  std::size_t have = 0;
  while (have < size) {
    const ssize_t got = pread(fd, static_cast<char*>(out) + have, size - have, static_cast<off_t>(offset + have));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    have += static_cast<std::size_t>(got);
  }
  return true;
}

std::size_t aligned(std::size_t size) { return (size + 3) & ~std::size_t{3}; }

std::string to_hex(std::string_view bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (const char byte : bytes) {
    const auto value = static_cast<unsigned char>(byte);
    hex += kDigits[value >> 4];
    hex += kDigits[value & 15];
  }
  return hex;
}

std::optional<std::string> build_id_in(std::string_view notes) {
  Elf64_Nhdr note{};
  while (notes.size() >= sizeof note) {
    std::memcpy(&note, notes.data(), sizeof note);
    notes.remove_prefix(sizeof note);
    if (note.n_namesz > notes.size() || aligned(note.n_namesz) > notes.size()) break;
    const std::string_view name = notes.substr(0, note.n_namesz);
    notes.remove_prefix(aligned(note.n_namesz));
    if (note.n_descsz > notes.size()) break;
    if (note.n_type == NT_GNU_BUILD_ID && name == std::string_view("GNU\0", 4)) {
      if (note.n_descsz < 4 || note.n_descsz > 20) break;
      return to_hex(notes.substr(0, note.n_descsz));
    }
    notes.remove_prefix(std::min(notes.size(), aligned(note.n_descsz)));
  }
  return std::nullopt;
}

std::optional<std::string> build_id_of(int fd) {
  Elf64_Ehdr elf{};
  if (!read_exactly(fd, &elf, sizeof elf, 0) || std::memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 ||
      elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_phentsize != sizeof(Elf64_Phdr) || elf.e_phnum > kHeadersMax) {
    return std::nullopt;
  }
  for (std::size_t index = 0; index < elf.e_phnum; ++index) {
    Elf64_Phdr header{};
    if (!read_exactly(fd, &header, sizeof header, elf.e_phoff + index * sizeof header)) return std::nullopt;
    if (header.p_type != PT_NOTE || header.p_filesz > kNotesBytesMax) continue;
    std::string notes(header.p_filesz, '\0');
    if (!read_exactly(fd, notes.data(), notes.size(), header.p_offset)) return std::nullopt;
    if (auto id = build_id_in(notes)) return id;
  }
  return std::nullopt;
}

// The file name of a mapping's path, without what the kernel appends to a removed file's.
std::string_view file_name(std::string_view path) {
  constexpr std::string_view kDeleted = " (deleted)";
  if (path.size() > kDeleted.size() && path.substr(path.size() - kDeleted.size()) == kDeleted) {
    path.remove_suffix(kDeleted.size());
  }
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// The address ranges of the process under which the file's beginning (offset 0) is mapped, one for each file.
Result<std::vector<std::string>> ranges_of(pid_t pid, std::string_view name, const std::string& proc) {
  const std::string path = proc + "/" + std::to_string(pid) + "/maps";
  std::ifstream maps(path);
  if (!maps) {
    return errno == EACCES || errno == EPERM
               ? fail(ErrorCode::kDenied, "cannot read " + path + ": only root can")
               : fail(ErrorCode::kNotFound, "process " + std::to_string(pid) + " has ended");
  }
  std::vector<std::string> ranges;
  std::string line;
  for (std::size_t lines = 0; std::getline(maps, line); ++lines) {
    if (lines == kMapsLinesMax) return fail(ErrorCode::kBadInput, path + " is longer than any process needs");
    const auto slash = line.find('/');
    if (slash == std::string::npos || file_name(std::string_view(line).substr(slash)) != name) continue;
    // "7f…-7f… r--p 00000000 fe:01 1234      /usr/lib/…": the third field is the offset.
    const auto range_end = line.find(' ');
    const auto mode_end = line.find(' ', range_end + 1);
    if (range_end == std::string::npos || mode_end == std::string::npos) continue;
    if (line.compare(mode_end + 1, 9, "00000000 ") == 0) ranges.push_back(line.substr(0, range_end));
  }
  return ranges;
}

// The whole symbol qemu_stamp_…, by which QEMU knows modules of its own build.
Result<std::string> stamp_of(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat st {};
  if (!fd || fstat(fd.get(), &st) != 0) return fail(ErrorCode::kNotFound, path + " is not there");
  std::string bytes(static_cast<std::size_t>(std::clamp<off_t>(st.st_size, 0, kModuleBytesMax)), '\0');
  if (!read_exactly(fd.get(), bytes.data(), bytes.size(), 0)) bytes.clear();
  const auto at = bytes.find(kStamp);
  const std::string digits = at == std::string::npos ? "" : bytes.substr(at + kStamp.size(), kStampDigits);
  if (digits.size() != kStampDigits || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    return fail(ErrorCode::kBadInput, path + " carries no stamp of a QEMU");
  return digits;
}

Result<std::string> module_directory(const std::string& state_dir) {
  std::ifstream file(state_dir + "/directory");
  std::string path;
  if (!std::getline(file, path) || path.empty() || path[0] != '/' || path.size() > 4096)
    return fail(ErrorCode::kNotFound, state_dir + "/directory does not say where QEMU's modules are; " + kInstall);
  return path;
}

}  // namespace

const char* module_file_name(QemuModule module) {
  return module == QemuModule::kUsbHost ? "hw-usb-host.so" : "hw-usb-redirect.so";
}

Result<BuildIds> read_build_ids(const std::string& path) {
  std::ifstream file(path);
  if (!file) return fail(ErrorCode::kNotFound, "no modules of ours are installed in QEMU (" + path + " is not there)");
  BuildIds ids;
  std::string line;
  while (std::getline(file, line)) {
    if (line.size() < 8 || line.size() > 40 || line.find_first_not_of("0123456789abcdef") != std::string::npos) {
      return fail(ErrorCode::kBadInput,
                  path + " holds \"" + escape_text(line.substr(0, 40)) + "\", which is no build-id");
    }
    if (ids.size() == kIdsMax) return fail(ErrorCode::kBadInput, path + " has too many lines");
    ids.insert(line);
  }
  return ids;
}

Result<std::string> build_id_of(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return fail_errno("cannot open " + path, errno);
  auto id = build_id_of(fd.get());
  if (!id) return fail(ErrorCode::kBadInput, path + " is no ELF file with a build-id");
  return *id;
}

Result<void> check_installed(const std::string& state_dir) {
  const auto ours = read_build_ids(state_dir + "/build-ids");
  if (!ours && ours.error().code == ErrorCode::kNotFound)
    return fail(ErrorCode::kNotFound, std::string("no modules of ours are installed in QEMU; ") + kInstall);
  if (!ours) return tl::unexpected(ours.error());
  const auto directory = module_directory(state_dir);
  if (!directory) return tl::unexpected(directory.error());
  for (const QemuModule module : {QemuModule::kUsbHost, QemuModule::kUsbRedirect}) {
    const std::string path = *directory + "/" + module_file_name(module);
    const auto id = build_id_of(path);
    if (!id) return tl::unexpected(id.error());
    if (!ours->contains(*id)) return fail(ErrorCode::kRefused, path + " is not ours; " + kInstall);
    const auto stamp = stamp_of(path);
    if (!stamp) return tl::unexpected(stamp.error());
    const auto wanted = stamp_of(path + ".distrib");
    if (!wanted) return tl::unexpected(wanted.error());
    if (*stamp != *wanted)
      return fail(ErrorCode::kRefused, path + " does not fit the installed QEMU; " + kInstall + " anew");
  }
  return {};
}

Result<ModuleUse> module_in_use(pid_t pid, QemuModule module, const BuildIds& ours, const std::string& proc) {
  const auto ranges = ranges_of(pid, module_file_name(module), proc);
  if (!ranges) return tl::unexpected(ranges.error());
  if (ranges->empty()) return ModuleUse::kAbsent;
  const std::string map_files = proc + "/" + std::to_string(pid) + "/map_files/";
  for (const std::string& range : *ranges) {
    // What is mapped, not what has its name now: an upgrade may have replaced the file since, and the process may live
    // in another mount namespace.
    const std::string mapped = map_files + range;
    const UniqueFd fd(::open(mapped.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd && (errno == EACCES || errno == EPERM))
      return fail(ErrorCode::kDenied, "cannot open " + mapped + ": only root can");
    if (!fd) return fail(ErrorCode::kNotFound, "process " + std::to_string(pid) + " has ended");
    const auto id = build_id_of(fd.get());
    if (!id || !ours.contains(*id)) return ModuleUse::kStock;
  }
  return ModuleUse::kEnforces;
}

}  // namespace usblease::host
