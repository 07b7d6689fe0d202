#include "daemon/host/home_codec.h"

#include <glib.h>

#include <array>
#include <set>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::host {
namespace {

constexpr std::size_t kMagicBytes = 16;
constexpr std::size_t kDigestBytes = 32;
constexpr const char* kMagicName = "usblease-home ";
constexpr std::size_t kBootIdBytesMax = 64;
constexpr std::size_t kPlaceBytesMax = 128;

std::string magic() { return std::string(kMagicName) + std::to_string(kHomeFormat) + "\n"; }

std::string sha256(const char* bytes, std::size_t size) {
  const GPtr<GChecksum, g_checksum_free> checksum(g_checksum_new(G_CHECKSUM_SHA256));
  g_checksum_update(checksum.get(), reinterpret_cast<const guchar*>(bytes), static_cast<gssize>(size));
  std::array<guint8, kDigestBytes> digest{};
  gsize length = digest.size();
  g_checksum_get_digest(checksum.get(), digest.data(), &length);
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// Starting without the file is safe: the coordinator supplies the floors. Starting with a wrong one is not.
tl::unexpected<Error> damaged(const std::string& path, const std::string& why) {
  return fail(ErrorCode::kRefused, path + " is damaged (" + why + "). Check the disk, move the file away (mv " + path +
                                       " " + path + ".damaged) and start again: the coordinator supplies what this" +
                                       " host must remember");
}

tl::unexpected<Error> newer(const std::string& path) {
  return fail(ErrorCode::kRefused, path + " was written by a newer usbleased; start that version, or a newer one");
}

Result<void> check_floors(const home::HomeFile& home, const std::string& path) {
  if (static_cast<std::size_t>(home.floors_size()) > kHomeFloorsMax) return damaged(path, "too many floors");
  std::set<std::string> names;
  for (const auto& floor : home.floors()) {
    if (!is_device_name(floor.device()) && !is_lock_name(floor.device())) return damaged(path, "a bad device name");
    if (!names.insert(floor.device()).second) return damaged(path, "device " + floor.device() + " is there twice");
    if (floor.boot_id().size() > kBootIdBytesMax) return damaged(path, "a bad boot id");
    if (floor.place().size() > kPlaceBytesMax) return damaged(path, "a bad place");
  }
  return {};
}

}  // namespace

std::string encode_home(const home::HomeFile& home) {
  const std::string payload = home.SerializeAsString();
  return magic() + sha256(payload.data(), payload.size()) + payload;
}

Result<home::HomeFile> decode_home(const std::string& bytes, const std::string& host_id, const std::string& path) {
  if (bytes.size() < kMagicBytes + kDigestBytes) return damaged(path, "cut short");
  if (bytes.size() > kHomeFileBytesMax) return damaged(path, "too large");
  if (bytes.compare(0, kMagicBytes, magic()) != 0) {
    if (bytes.rfind(kMagicName, 0) == 0 && bytes[kMagicBytes - 1] == '\n') return newer(path);
    return damaged(path, "it does not begin as a home file");
  }
  const char* const payload = bytes.data() + kMagicBytes + kDigestBytes;
  const std::size_t payload_size = bytes.size() - kMagicBytes - kDigestBytes;
  if (bytes.compare(kMagicBytes, kDigestBytes, sha256(payload, payload_size)) != 0) {
    return damaged(path, "its checksum is wrong");
  }
  home::HomeFile home;
  if (!home.ParseFromArray(payload, static_cast<int>(payload_size))) return damaged(path, "it cannot be parsed");
  if (home.format() > kHomeFormat) return newer(path);
  if (home.format() == 0) return damaged(path, "it has no format");
  if (home.host_id() != host_id) {
    return fail(ErrorCode::kRefused, path + " belongs to host " + escape_text(home.host_id().substr(0, 64)) +
                                         ", this is " + host_id + ": set host_id= back in usbleased.conf, or, if the" +
                                         " file was copied from there, move it away and start again");
  }
  if (const auto checked = check_floors(home, path); !checked) return tl::unexpected(checked.error());
  return home;
}

}  // namespace usblease::host
