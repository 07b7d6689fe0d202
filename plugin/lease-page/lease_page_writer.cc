#include "plugin/lease-page/lease_page_writer.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::lease_page {
namespace {

static_assert(sizeof(UsbLeaseSlot) == USB_LEASE_SLOT_BYTES);
static_assert(offsetof(UsbLeaseSlot, check) == USB_LEASE_SLOT_BYTES - sizeof(std::uint64_t));

// Readable by QEMU, which runs as another user. It holds no secret: a token proves nothing to anybody.
constexpr mode_t kMode = 0644;
constexpr mode_t kDirectoryMode = 0755;
constexpr std::size_t kNamesMax = 4096;

void seal(UsbLeaseSlot& slot) { slot.check = usb_lease_check(&slot); }

Result<void> write_at(int fd, const std::string& path, const void* bytes, std::size_t size, std::size_t offset) {
  ssize_t wrote;
  do {
    wrote = pwrite(fd, bytes, size, static_cast<off_t>(offset));
  } while (wrote < 0 && errno == EINTR);
  if (wrote < 0 && (errno == ENOSPC || errno == EDQUOT)) {
    return fail(ErrorCode::kUnavailable, "no room to write the lease page " + path);
  }
  if (wrote < 0) return fail_errno("cannot write the lease page " + path, errno);
  if (static_cast<std::size_t>(wrote) != size) {
    return fail(ErrorCode::kUnavailable, "only a part of the lease page " + path + " could be written");
  }
  return {};
}

Result<UsbLeaseSlot> first_slot() {
  UsbLeaseSlot slot{};
  slot.magic = USB_LEASE_MAGIC;
  slot.version = USB_LEASE_VERSION;
  slot.state = USB_LEASE_FREE;
  slot.generation = 2;  // the slot at the file's beginning
  while (slot.epoch == 0) {
    if (getrandom(&slot.epoch, sizeof slot.epoch, 0) != sizeof slot.epoch) return fail_errno("getrandom", errno);
  }
  seal(slot);
  return slot;
}

// What is there, if it is a page that this user wrote and that still has exactly one name.
bool can_continue(int fd, UsbLeaseSlot* slot) {
  struct stat st {};
  return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && st.st_nlink == 1 &&
         st.st_size == USB_LEASE_PAGE_BYTES && usb_lease_read(fd, slot) == 0;
}

// Complete before it has its name, so that no reader meets half of it.
Result<UniqueFd> make_page(const std::string& path, const UsbLeaseSlot& slot) {
  const std::string fresh = path + ".new";
  if (unlink(fresh.c_str()) != 0 && errno != ENOENT) return fail_errno("cannot remove " + fresh, errno);
  UniqueFd fd(::open(fresh.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kMode));
  if (!fd) return fail_errno("cannot create the lease page " + fresh, errno);
  std::array<std::uint8_t, USB_LEASE_PAGE_BYTES> bytes{};
  std::memcpy(bytes.data(), &slot, sizeof slot);
  if (auto wrote = write_at(fd.get(), fresh, bytes.data(), bytes.size(), 0); !wrote) {
    unlink(fresh.c_str());
    return tl::unexpected(wrote.error());
  }
  if (fchmod(fd.get(), kMode) != 0 || rename(fresh.c_str(), path.c_str()) != 0) {
    const int error_number = errno;
    unlink(fresh.c_str());
    return fail_errno("cannot put the lease page " + path + " in place", error_number);
  }
  return fd;
}

}  // namespace

std::string usb_page_path(const std::string& run_dir, unsigned bus, unsigned device) {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "usb-%03u-%03u", bus, device);
  return run_dir + "/pages/" + name.data();
}

std::string redir_page_path(const std::string& run_dir, const std::string& guest_uuid, const std::string& device) {
  return run_dir + "/pages/redir-" + guest_uuid + "-" + device;
}

Result<void> make_directory(const std::string& run_dir) {
  const std::string path = run_dir + "/pages";
  if ((mkdir(path.c_str(), kDirectoryMode) != 0 && errno != EEXIST) || chmod(path.c_str(), kDirectoryMode) != 0)
    return fail_errno("cannot make the directory " + path, errno);
  return {};
}

Result<std::vector<std::string>> list_pages(const std::string& run_dir) {
  const std::string path = run_dir + "/pages";
  GErrorOut error;
  const GPtr<GDir, g_dir_close> directory(g_dir_open(path.c_str(), 0, error.out()));
  if (!directory)
    return fail(ErrorCode::kInternal, std::string("cannot read the directory of lease pages: ") + error.message());
  std::vector<std::string> names;
  while (names.size() < kNamesMax) {
    const char* const name = g_dir_read_name(directory.get());
    if (name == nullptr) break;
    names.emplace_back(name);
  }
  return names;
}

Result<Id> id_from_uuid(const std::string& uuid) {
  const auto text = parse_uuid(uuid);
  if (!text) return tl::unexpected(text.error());
  Id id{};
  std::size_t at = 0;
  for (std::uint8_t& byte : id) {
    if ((*text)[at] == '-') ++at;
    std::from_chars(text->data() + at, text->data() + at + 2, byte, 16);
    at += 2;
  }
  return id;
}

Result<Writer> Writer::open(std::string path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  UsbLeaseSlot slot{};
  if (fd && can_continue(fd.get(), &slot)) return Writer(std::move(path), std::move(fd), slot);
  const auto first = first_slot();
  if (!first) return tl::unexpected(first.error());
  auto made = make_page(path, *first);
  if (!made) return tl::unexpected(made.error());
  return Writer(std::move(path), std::move(*made), *first);
}

Result<void> Writer::write_next(UsbLeaseSlot next) {
  next.generation = now_.generation + 1;
  seal(next);
  const std::size_t index = next.generation % 2;
  auto wrote = write_at(fd_.get(), path_, &next, sizeof next, index * sizeof next);
  if (wrote) now_ = next;
  return wrote;
}

Result<void> Writer::write_both(const UsbLeaseSlot& next) {
  if (auto wrote = write_next(next); !wrote) return wrote;
  return write_next(next);
}

Result<void> Writer::grant(const Grant& grant) {
  if (grant.token <= now_.token) {
    return fail(ErrorCode::kRefused, "the lease page " + path_ + " has seen token " + std::to_string(now_.token) +
                                         " already; it does not grant token " + std::to_string(grant.token));
  }
  if (grant.start == Id{}) return fail(ErrorCode::kBadInput, "a grant needs the nonce of the guest's start");
  UsbLeaseSlot next = now_;
  next.state = USB_LEASE_GRANTED;
  next.token = grant.token;
  next.deadline_ns = grant.deadline_ns;
  std::memcpy(next.guest, grant.guest.data(), sizeof next.guest);
  std::memcpy(next.start, grant.start.data(), sizeof next.start);
  next.pid = grant.pid;
  return write_both(next);
}

Result<void> Writer::renew(std::uint64_t deadline_ns) {
  if (now_.state != USB_LEASE_GRANTED)
    return fail(ErrorCode::kRefused, path_ + " grants nothing that could be renewed");
  if (deadline_ns < now_.deadline_ns) {
    return fail(ErrorCode::kRefused, "a renewal of " + path_ + " must not end earlier; revoke it instead");
  }
  UsbLeaseSlot next = now_;
  next.deadline_ns = deadline_ns;
  return write_next(next);
}

Result<void> Writer::bind(std::uint32_t pid) {
  if (now_.state != USB_LEASE_GRANTED) return fail(ErrorCode::kRefused, path_ + " grants nothing to anybody");
  if (now_.pid == pid) return {};
  if (now_.pid != 0 || pid == 0) {
    return fail(ErrorCode::kRefused, path_ + " is bound to process " + std::to_string(now_.pid) + " already");
  }
  UsbLeaseSlot next = now_;
  next.pid = pid;
  return write_both(next);
}

Result<void> Writer::revoke() {
  if (now_.state != USB_LEASE_GRANTED) return {};
  UsbLeaseSlot next = now_;
  next.state = USB_LEASE_REVOKED;
  return write_both(next);
}

Result<void> Writer::remove() {
  if (unlink(path_.c_str()) != 0 && errno != ENOENT) return fail_errno("cannot remove the lease page " + path_, errno);
  return {};
}

}  // namespace usblease::lease_page
