// PID 1 of the tests' guests, the only program in their initramfs (guest_image.py builds it, statically). It loads the
// modules for USB, says on the console what the kernel says of USB devices, and talks to every serial adapter it sees:
// it writes "ping N" and expects "pong N SERIAL". What it prints is what the tests wait for, each line after the
// guest's uptime in seconds:
//
//   guest: up                          the USB host controller is there
//   guest: usb-add VENDOR:PRODUCT SERIAL
//   guest: usb-remove VENDOR:PRODUCT SERIAL
//   guest: pong N SERIAL               at most kPongLinesPerSecond of them
//   guest: silence N                   no answer to ping N for kAnswerMs; it goes on with N + 1
//   guest: io-error ERRNO after N      the adapter failed; N is the last ping that was answered
//   guest: flood                       with usblease.flood=1: writes begin that wait for nothing
//
// A shell would need a process a line; under emulation that is the difference between milliseconds and seconds.
#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

namespace {

constexpr int kAnswerMs = 1000;
constexpr long kPongLinesPerSecond = 5;
constexpr int kUeventBytesMax = 8192;
constexpr size_t kDevicesMax = 16;
constexpr size_t kTextMax = 64;

long uptime_ms() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

// One write a line, so that lines of several processes never mix.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...) {
  char line[256];
  const long now = uptime_ms();
  const int head = snprintf(line, sizeof line, "%ld.%03ld guest: ", now / 1000, now % 1000);
  va_list arguments;
  va_start(arguments, format);
  const int body =
      vsnprintf(line + head, sizeof line - static_cast<size_t>(head) - 1, format, arguments);  // NOLINT: bounded
  va_end(arguments);
  size_t length = static_cast<size_t>(head) + static_cast<size_t>(body < 0 ? 0 : body);
  if (length > sizeof line - 2) length = sizeof line - 2;
  line[length++] = '\n';
  if (write(STDOUT_FILENO, line, length) < 0) return;
}

void load_modules() {
  FILE* list = fopen("/modules", "re");
  if (list == nullptr) return;
  char path[256];
  while (fgets(path, sizeof path, list) != nullptr) {
    path[strcspn(path, "\n")] = '\0';
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0) say("cannot load %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
  }
  fclose(list);
}

// usblease.NAME=NUMBER of the kernel's command line.
long parameter(const char* name, long fallback) {
  char text[2048] = "";
  const int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  const ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  if (length < 0) return fallback;
  text[length] = '\0';
  const char* at = strstr(text, name);
  return at == nullptr ? fallback : strtol(at + strlen(name), nullptr, 10);
}

// ---- the talk with one serial adapter, in a process of its own

struct Talk {
  int fd = -1;
  char pending[256] = "";
  size_t pending_length = 0;
};

// 1: one whole line in `line`; 0: nothing came in time; -1: failed, errno says why.
int read_line(Talk& talk, char* line, size_t line_size, long deadline_ms) {
  for (;;) {
    char* end = static_cast<char*>(memchr(talk.pending, '\n', talk.pending_length));
    if (end != nullptr) {
      const size_t length = static_cast<size_t>(end - talk.pending);
      snprintf(line, line_size, "%.*s", static_cast<int>(length), talk.pending);
      talk.pending_length -= length + 1;
      memmove(talk.pending, end + 1, talk.pending_length);
      return 1;
    }
    if (talk.pending_length == sizeof talk.pending) talk.pending_length = 0;  // no line is that long
    const long left = deadline_ms - uptime_ms();
    if (left <= 0) return 0;
    pollfd waiting{talk.fd, POLLIN, 0};
    if (poll(&waiting, 1, static_cast<int>(left)) <= 0) continue;
    const ssize_t got = read(talk.fd, talk.pending + talk.pending_length, sizeof talk.pending - talk.pending_length);
    if (got == 0) errno = ENODEV;  // a tty that was hung up
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return -1;
    if (got > 0) talk.pending_length += static_cast<size_t>(got);
  }
}

bool open_adapter(const char* path, Talk& talk) {
  talk.fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  termios settings{};
  if (talk.fd < 0 || tcgetattr(talk.fd, &settings) != 0) return false;
  cfmakeraw(&settings);
  settings.c_cflag |= CLOCAL;
  return tcsetattr(talk.fd, TCSANOW, &settings) == 0;
}

[[noreturn]] void talk_to(const char* path, long interval_ms) {
  Talk talk;
  long answered = 0;
  bool alive = open_adapter(path, talk);
  long next_line_ms = 0;
  for (long n = 1; alive; ++n) {
    const long begun_ms = uptime_ms();
    char text[kTextMax];
    const int length = snprintf(text, sizeof text, "ping %ld\n", n);
    const ssize_t written = write(talk.fd, text, static_cast<size_t>(length));
    if (written < 0 && errno != EAGAIN) break;
    char serial[kTextMax] = "";
    for (long got = 0; got != n;) {  // answers to earlier pings may come late
      char line[256];
      const int outcome = read_line(talk, line, sizeof line, begun_ms + kAnswerMs);
      if (outcome < 0) alive = false;
      if (outcome == 0) say("silence %ld", n);
      if (outcome <= 0) break;
      if (sscanf(line, "pong %ld %63s", &got, serial) != 2) continue;  // NOLINT: bounded
      answered = got;
      if (uptime_ms() < next_line_ms) continue;
      next_line_ms = uptime_ms() + 1000 / kPongLinesPerSecond;
      say("pong %ld %s", got, serial);
    }
    const long rest_ms = begun_ms + interval_ms - uptime_ms();
    if (alive && rest_ms > 0) poll(nullptr, 0, static_cast<int>(rest_ms));
  }
  say("io-error %s after %ld", strerrorname_np(errno), answered);
  _exit(0);
}

// ---- what the kernel says of USB

struct Device {
  char path[256] = "";
  char text[kTextMax * 2] = "";
};
Device devices[kDevicesMax];  // an entry without a path is free

void read_attribute(const char* device, const char* name, char* out, size_t size) {
  char path[512];
  snprintf(path, sizeof path, "/sys%s/%s", device, name);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t length = fd < 0 ? 0 : read(fd, out, size - 1);
  if (fd >= 0) close(fd);
  out[length < 0 ? 0 : length] = '\0';
  out[strcspn(out, "\n")] = '\0';
}

void usb_added(const char* path) {
  char vendor[8];
  char product[8];
  char serial[kTextMax];
  read_attribute(path, "idVendor", vendor, sizeof vendor);
  read_attribute(path, "idProduct", product, sizeof product);
  read_attribute(path, "serial", serial, sizeof serial);
  if (strcmp(vendor, "1d6b") == 0) return;  // the kernel's own root hubs
  for (Device& device : devices) {
    if (device.path[0] != '\0') continue;
    snprintf(device.path, sizeof device.path, "%s", path);
    snprintf(device.text, sizeof device.text, "%s:%s %s", vendor, product, serial[0] == '\0' ? "-" : serial);
    say("usb-add %s", device.text);
    return;
  }
}

void usb_removed(const char* path) {
  for (Device& device : devices) {
    if (strcmp(device.path, path) != 0) continue;
    say("usb-remove %s", device.text);
    device.path[0] = '\0';
    return;
  }
}

// The value of KEY= in a uevent, a row of strings that each end with NUL.
const char* field(const char* event, size_t length, const char* key) {
  const size_t key_length = strlen(key);
  for (const char* at = event; at < event + length; at += strlen(at) + 1) {
    if (strncmp(at, key, key_length) == 0) return at + key_length;
  }
  return "";
}

// Writes without waiting for anything, by the processor's own counter: a write every so often even when no timer of the
// machine runs any more, each one USB packet, until the kernel has no room for another.
[[noreturn]] void flood(const char* path) {
  constexpr unsigned long long kTicksBetween = 50'000'000;  // some 20 to 50 ms
  Talk talk;
  if (!open_adapter(path, talk)) _exit(1);
  say("flood");
  for (;;) {
    const unsigned long long begun = __builtin_ia32_rdtsc();
    if (write(talk.fd, "x\n", 2) < 0 && errno != EAGAIN) break;
    while (__builtin_ia32_rdtsc() - begun < kTicksBetween) {
    }
  }
  say("io-error %s after the flood", strerrorname_np(errno));
  _exit(0);
}

void on_uevent(const char* event, size_t length, long interval_ms) {
  const char* action = field(event, length, "ACTION=");
  const bool added = strcmp(action, "add") == 0;
  if (strcmp(field(event, length, "DEVTYPE="), "usb_device") == 0) {
    const char* path = field(event, length, "DEVPATH=");
    if (added) usb_added(path);
    if (strcmp(action, "remove") == 0) usb_removed(path);
  }
  const char* name = field(event, length, "DEVNAME=");
  if (added && strncmp(name, "ttyACM", 6) == 0 && fork() == 0) {
    char path[kTextMax];
    snprintf(path, sizeof path, "/dev/%s", name);
    if (parameter("usblease.flood=", 0) != 0) flood(path);
    talk_to(path, interval_ms);
  }
}

}  // namespace

int main() {
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("sysfs", "/sys", "sysfs", 0, nullptr);
  mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  const int console = open("/dev/ttyS0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (console >= 0) dup2(console, STDOUT_FILENO);
  signal(SIGCHLD, SIG_IGN);

  const int uevents = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = 1;
  if (bind(uevents, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) say("no uevents: %s", strerror(errno));
  load_modules();
  say("up");

  const long interval_ms = parameter("usblease.interval_ms=", 200);
  for (;;) {
    char event[kUeventBytesMax + 1];
    const ssize_t length = recv(uevents, event, kUeventBytesMax, 0);
    if (length <= 0) continue;
    event[length] = '\0';
    on_uevent(event, static_cast<size_t>(length), interval_ms);
  }
}
