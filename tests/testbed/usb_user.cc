// Somebody who uses a USB device through usbfs: what the fence is for. It says when its calls get through and when they
// do not, in CLOCK_BOOTTIME of the host that it runs in.
//
//   usb-user open NODE              opens it: "opened", or "refused ERROR"; exit code 0 or 1
//   usb-user loop NODE FOR_MS       one control transfer after another, by URB: a line at each change, and a last one;
//                                   ends when it was refused for a while
//   usb-user stay NODE FOR_MS       the same, and does not end
//   usb-user compat NODE FOR_MS     as loop, with a cheap call as a program of 32 bits makes it
//   usb-user wait NODE FOR_MS       queues an interrupt transfer that never completes, and says what ends it
//   usb-user cost NODE COUNT        "NS ns": how long a cheap call takes, mean of COUNT
//
// With MOVE_TO=/sys/fs/cgroup/… in its environment, it moves there once it has opened the device: as one who got the
// handle from somebody else.
#include <fcntl.h>
#include <linux/usbdevice_fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace {

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

const char* name_of(int error) { return error == 0 ? "ok" : strerrorname_np(error); }

void say(const char* text) { std::printf("%" PRIu64 " %s\n", now_ns(), text); }

// GET_DESCRIPTOR (device) on endpoint 0, submitted and reaped. 0 or the error's number; a transfer that failed counts.
int transfer(int fd) {
  alignas(8) unsigned char buffer[8 + 18] = {0x80, 6, 0, 1, 0, 0, 18, 0};
  usbdevfs_urb urb{};
  urb.type = USBDEVFS_URB_TYPE_CONTROL;
  urb.buffer = buffer;
  urb.buffer_length = sizeof buffer;
  if (ioctl(fd, USBDEVFS_SUBMITURB, &urb) != 0) return errno;
  void* reaped = nullptr;
  if (ioctl(fd, USBDEVFS_REAPURB, &reaped) != 0) return errno;
  return urb.status == 0 ? 0 : -urb.status;
}

// The system call of 32 bits: the kernel takes it for one of a 32-bit program.
int compat_call(int fd) {
#if defined(__x86_64__)
  static void* const low = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (low == MAP_FAILED) return errno;
  constexpr long kIoctl32 = 54;
  long result = kIoctl32;
  asm volatile("int $0x80"
               : "+a"(result)
               : "b"(fd), "c"(USBDEVFS_GET_CAPABILITIES), "d"(low)
               : "memory", "r8", "r9", "r10", "r11");
  const int code = static_cast<int>(result);
  return code < 0 ? -code : 0;
#else
  static_cast<void>(fd);
  return ENOSYS;
#endif
}

int cheap_call(int fd) {
  std::uint32_t capabilities = 0;
  return ioctl(fd, USBDEVFS_GET_CAPABILITIES, &capabilities) == 0 ? 0 : errno;
}

int loop(int fd, std::uint64_t for_ms, std::uint64_t give_up_ns, int (*call)(int)) {
  const std::uint64_t end_ns = now_ns() + for_ms * 1'000'000;
  std::uint64_t refused_ns = 0;
  std::uint64_t last_ok_ns = 0;
  std::uint64_t count = 0;
  int before = -1;
  while (now_ns() < end_ns) {
    const int error = call(fd);
    const std::uint64_t at_ns = now_ns();
    if (error == 0) {
      last_ok_ns = at_ns;
      refused_ns = 0;
      ++count;
    } else {
      if (refused_ns == 0) refused_ns = at_ns;
      usleep(500);
    }
    if (error != before) std::printf("%" PRIu64 " %s\n", at_ns, name_of(error));
    before = error;
    if (refused_ns != 0 && at_ns - refused_ns > give_up_ns) break;
  }
  std::printf("%" PRIu64 " end last_ok_ns=%" PRIu64 " count=%" PRIu64 "\n", now_ns(), last_ok_ns, count);
  return 0;
}

int wait_for_interrupt(int fd, std::uint64_t for_ms) {
  usbdevfs_disconnect_claim claim{};
  if (ioctl(fd, USBDEVFS_DISCONNECT_CLAIM, &claim) != 0) {
    std::perror("claiming interface 0");
    return 1;
  }
  unsigned char buffer[8];
  usbdevfs_urb urb{};
  urb.type = USBDEVFS_URB_TYPE_INTERRUPT;
  urb.endpoint = 0x81;
  urb.buffer = buffer;
  urb.buffer_length = sizeof buffer;
  if (ioctl(fd, USBDEVFS_SUBMITURB, &urb) != 0) {
    std::perror("submitting");
    return 1;
  }
  say("queued");
  // Polling is no call on the device, so the fence has no say in it: usbfs itself tells when the transfer has ended.
  pollfd ready{fd, POLLOUT, 0};
  say(poll(&ready, 1, static_cast<int>(for_ms)) == 0 ? "still queued" : "ended");
  return 0;
}

int cost(int fd, std::uint64_t count) {
  const std::uint64_t begun_ns = now_ns();
  for (std::uint64_t i = 0; i < count; ++i) {
    if (const int error = cheap_call(fd); error != 0) {
      std::printf("%s\n", name_of(error));
      return 1;
    }
  }
  std::printf("%.1f ns\n", static_cast<double>(now_ns() - begun_ns) / static_cast<double>(count));
  return 0;
}

bool move_to(const char* cgroup) {
  if (cgroup == nullptr) return true;
  const std::string path = std::string(cgroup) + "/cgroup.procs";
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  const bool moved = fd >= 0 && write(fd, "0", 1) == 1;
  if (!moved) std::perror(path.c_str());
  if (fd >= 0) close(fd);
  return moved;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string mode = argc > 1 ? argv[1] : "";
  const int fd = argc > 2 ? open(argv[2], O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) {
    std::printf("%" PRIu64 " refused %s\n", now_ns(), name_of(errno));
    return 1;
  }
  say("opened");
  if (!move_to(std::getenv("MOVE_TO"))) return 2;
  const std::uint64_t number = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  if (mode == "open") return 0;
  constexpr std::uint64_t kGiveUpNs = 200'000'000;
  if (mode == "loop") return loop(fd, number, kGiveUpNs, transfer);
  if (mode == "stay") return loop(fd, number, ~std::uint64_t{0}, transfer);
  if (mode == "compat") return loop(fd, number, kGiveUpNs, compat_call);
  if (mode == "wait") return wait_for_interrupt(fd, number);
  if (mode == "cost") return cost(fd, number);
  return 2;
}
