// The hypervisor against a real libvirtd and a real QEMU: attach and detach, events, a libvirtd that is restarted or
// killed, a QEMU that hangs. Runs in a mount namespace of its own, with private directories of libvirt; needs root.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "common/boottime.h"
#include "common/unix_socket.h"
#include "daemon/host/guest_process.h"
#include "daemon/host/libvirt_events.h"
#include "daemon/host/libvirt_hypervisor.h"
#include "daemon/host/libvirt_ptr.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::expect_code;
using test::expect_text;
using test::run_until;
using test::TemporaryDirectory;

constexpr const char* kUri = "qemu:///system";
constexpr const char* kRunDir = "/run/libvirt/qemu";
constexpr const char* kUuid = "11111111-2222-3333-4444-555555555555";
constexpr const char* kOtherUuid = "11111111-2222-3333-4444-666666666666";

void write_file(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::trunc) << text; }

// libvirtd with private directories; this process must be in a mount namespace of its own.
class Libvirtd {
 public:
  explicit Libvirtd(const TemporaryDirectory& directory) {
    for (const char* path :
         {"/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"}) {
      std::filesystem::create_directories(path);
      const std::string own = directory.path(std::filesystem::path(path).parent_path().filename());
      std::filesystem::create_directories(own);
      ck_assert_int_eq(mount(own.c_str(), path, nullptr, MS_BIND, nullptr), 0);
    }
    write_file("/etc/libvirt/qemu.conf",
               "security_driver = \"none\"\nuser = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n"
               "remember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n");
    write_file("/etc/libvirt/libvirtd.conf", "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n");
  }
  Libvirtd(const Libvirtd&) = delete;
  Libvirtd& operator=(const Libvirtd&) = delete;
  // Whatever a test that failed left behind; from outside of its namespace.
  static void clean_up(const TemporaryDirectory& directory) {
    const std::string run = directory.path("run");
    // The lock of the PID file says that it is still that process.
    const Result<GuestProcess> left[] = {qemu_of(run + "/qemu", "one"), qemu_of(run + "/qemu", "two"),
                                         qemu_of(run, "libvirtd")};
    for (const auto& process : left) {
      if (process) kill(process->pid(), SIGKILL);
    }
  }

  void start() {
    ck_assert_int_eq(pid_, 0);
    pid_ = fork();
    if (pid_ == 0) {
      const int log = open("/var/log/libvirt/libvirtd.log", O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(log, 1);
      dup2(log, 2);
      execlp("libvirtd", "libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid", nullptr);
      _exit(127);
    }
  }
  void signal(int number) const { kill(pid_, number); }
  void end(int signal) {
    kill(pid_, signal);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
};

// Somebody else at libvirt. Closed before libvirtd is restarted.
class Virsh {
 public:
  Virsh() {
    ck_assert(prepare_libvirt().has_value());
    connection_ = virConnectOpen(kUri);
    ck_assert_ptr_nonnull(connection_);
  }
  Virsh(const Virsh&) = delete;
  Virsh& operator=(const Virsh&) = delete;
  ~Virsh() { virConnectClose(connection_); }

  void define_and_start(const std::string& name, const std::string& uuid) const {
    const std::string xml = "<domain type='qemu'><name>" + name + "</name><uuid>" + uuid +
                            "</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64'"
                            " machine='pc'>hvm</type></os><devices>"
                            "<controller type='usb' model='qemu-xhci' ports='8'/><memballoon model='none'/>"
                            "</devices></domain>";
    const DomainPtr domain(virDomainDefineXML(connection_, xml.c_str()));
    ck_assert_msg(domain != nullptr, "%s", virGetLastErrorMessage());
    ck_assert_msg(virDomainCreate(domain.get()) == 0, "%s", virGetLastErrorMessage());
  }
  DomainPtr look_up(const std::string& name) const {
    return DomainPtr(virDomainLookupByName(connection_, name.c_str()));
  }

 private:
  virConnectPtr connection_ = nullptr;
};

template <typename T>
struct Answer {
  std::optional<Result<T>> result;
  Hypervisor::Done<T> done() {
    return [this](Result<T> value) { result = std::move(value); };
  }
  const Result<T>& wait() {
    ck_assert(run_until([&] { return result.has_value(); }, 45'000));
    return *result;
  }
};

std::uint64_t ms_since(std::uint64_t begin_ns) { return (boottime_now_ns() - begin_ns) / 1'000'000; }

// The daemon's side: a trace of events, and calls that wait for their answers.
class Host {
 public:
  Host() : hypervisor_(make_libvirt_hypervisor({kUri, kRunDir})) {
    HypervisorEvents events;
    events.connected = [this](std::vector<Guest> guests) {
      all = std::move(guests);
      trace += "connected\n";
    };
    events.disconnected = [this](const std::string& /*why*/) { trace += "disconnected\n"; };
    events.guest_started = [this](const Guest& guest) {
      started = guest;
      trace += "started " + guest.name + "\n";
    };
    events.guest_stopped = [this](const std::string& uuid) { trace += "stopped " + uuid + "\n"; };
    events.device_removed = [this](const std::string& uuid, const std::string& device) {
      trace += "removed " + device + " from " + uuid + "\n";
    };
    hypervisor_->start(std::move(events));
  }
  // Waits for exactly these events, and forgets them.
  void expect(const std::string& lines) {
    const bool came = run_until([&] { return trace.size() >= lines.size(); }, 30'000);
    ck_assert_msg(came && trace == lines, "expected:\n%sgot:\n%s", lines.c_str(), trace.c_str());
    trace.clear();
  }
  Guest find(const std::string& name) {
    Answer<Guest> answer;
    hypervisor_->find_guest(name, answer.done());
    ck_assert(answer.wait().has_value());
    return **answer.result;
  }
  Result<void> attach(const std::string& uuid, const std::string& device, const std::string& path) {
    Answer<void> answer;
    hypervisor_->attach_endpoint(uuid, device, path, answer.done());
    return answer.wait();
  }
  Result<void> detach(const std::string& uuid, const std::string& device) {
    Answer<void> answer;
    hypervisor_->detach(uuid, device, answer.done());
    return answer.wait();
  }
  Hypervisor& operator*() { return *hypervisor_; }

  std::vector<Guest> all;
  Guest started;
  std::string trace;

 private:
  std::unique_ptr<Hypervisor> hypervisor_;
};

// A socket on which a guest's QEMU is awaited.
class GuestSocket {
 public:
  explicit GuestSocket(std::string path) : path_(std::move(path)) {
    auto fd = listen_unix(path_, 0600, SOCK_STREAM);
    ck_assert(fd.has_value());
    listener_ = std::move(*fd);
  }
  [[nodiscard]] const std::string& path() const { return path_; }
  UniqueFd accept() {
    const UniqueFd* listener = &listener_;
    UniqueFd stream;
    bool ready = false;
    const auto watch = watch_fd(listener->get(), G_IO_IN, [&](GIOCondition) { ready = true; });
    ck_assert(run_until([&] { return ready; }));
    stream.reset(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    ck_assert(static_cast<bool>(stream));
    return stream;
  }

 private:
  std::string path_;
  UniqueFd listener_;
};

bool has_ended(const UniqueFd& stream) {
  char bytes[256];
  for (;;) {
    const ssize_t got = read(stream.get(), bytes, sizeof bytes);
    if (got <= 0) return got == 0;
  }
}

void attach_and_detach(Host& host, const Virsh& virsh, const TemporaryDirectory& directory) {
  GuestSocket socket(directory.path("dongle"));
  std::uint64_t begin_ns = boottime_now_ns();
  const auto attached = host.attach(kUuid, "dongle", socket.path());
  ck_assert_msg(attached.has_value(), "%s", attached ? "" : attached.error().message.c_str());
  printf("attach: %llu ms\n", static_cast<unsigned long long>(ms_since(begin_ns)));
  const UniqueFd stream = socket.accept();
  const auto peer = verify_peer(stream.get(), kRunDir, "one", kUuid);
  ck_assert_msg(peer.has_value(), "%s", peer ? "" : peer.error().message.c_str());
  ck_assert(!verify_peer(stream.get(), kRunDir, "two", kOtherUuid).has_value());
  ck_assert(host.find("one").attached == std::vector<std::string>{"dongle"});
  ck_assert(!has_ended(stream));
  expect_code(host.attach(kUuid, "dongle", socket.path()).error(), ErrorCode::kRefused, "dongle");
  ck_assert(!has_ended(stream));

  begin_ns = boottime_now_ns();
  ck_assert(host.detach(kUuid, "dongle").has_value());
  printf("detach: %llu ms\n", static_cast<unsigned long long>(ms_since(begin_ns)));
  host.expect(std::string("removed dongle from ") + kUuid + "\n");
  ck_assert(has_ended(stream));
  ck_assert(host.find("one").attached.empty());
  ck_assert(host.detach(kUuid, "dongle").has_value());

  // At once again, and then taken away by somebody else.
  ck_assert(host.attach(kUuid, "dongle", socket.path()).has_value());
  const DomainPtr domain = virsh.look_up("one");
  ck_assert_int_eq(virDomainDetachDeviceAlias(domain.get(), "ua-usblease-dongle", VIR_DOMAIN_AFFECT_LIVE), 0);
  host.expect(std::string("removed dongle from ") + kUuid + "\n");

  begin_ns = boottime_now_ns();
  const Error nobody = host.attach(kUuid, "dongle", directory.path("nobody")).error();
  expect_code(nobody, ErrorCode::kInternal, "cannot attach dongle to guest one: libvirt says");
  ck_assert(host.find("one").attached.empty());
}

void a_hung_guest_holds_up_no_other(Host& host, const TemporaryDirectory& directory) {
  GuestSocket socket(directory.path("hung"));
  const pid_t qemu = host.find("one").pid;
  ck_assert_int_eq(kill(qemu, SIGSTOP), 0);
  Answer<void> attached;
  (*host).attach_endpoint(kUuid, "hung", socket.path(), attached.done());
  std::uint64_t worst_ms = 0;
  for (int i = 0; i < 20; ++i) {
    const std::uint64_t begin_ns = boottime_now_ns();
    ck_assert(host.find(i % 2 == 0 ? "two" : "one").running);
    worst_ms = std::max(worst_ms, ms_since(begin_ns));
  }
  Answer<bool> assigned;
  (*host).assign("two", {"dongle"}, false, assigned.done());
  ck_assert(assigned.wait().has_value());
  ck_assert_msg(!attached.result, "%s", *attached.result ? "ok" : attached.result->error().message.c_str());
  printf("find_guest while a guest hangs: %llu ms at worst\n", static_cast<unsigned long long>(worst_ms));
  ck_assert_uint_lt(worst_ms, 2000);  // the next keepalive would come after 5000
  ck_assert_int_eq(kill(qemu, SIGCONT), 0);
  ck_assert(attached.wait().has_value());
  ck_assert(host.detach(kUuid, "hung").has_value());
  host.expect(std::string("removed hung from ") + kUuid + "\n");
}

void libvirtd_goes_and_comes(Host& host, Libvirtd& libvirtd, const TemporaryDirectory& directory) {
  GuestSocket socket(directory.path("kept"));
  ck_assert(host.attach(kUuid, "kept", socket.path()).has_value());
  const UniqueFd stream = socket.accept();
  const pid_t qemu = host.find("one").pid;
  for (const int signal : {SIGTERM, SIGKILL}) {
    libvirtd.end(signal);
    host.expect("disconnected\n");
    Answer<Guest> away;
    (*host).find_guest("one", away.done());
    expect_code(away.wait().error(), ErrorCode::kUnavailable, "libvirt is away");
    const std::uint64_t begin_ns = boottime_now_ns();
    libvirtd.start();
    host.expect("connected\n");
    printf("libvirtd restarted after signal %d: connected again after %llu ms\n", signal,
           static_cast<unsigned long long>(ms_since(begin_ns)));
    ck_assert_uint_eq(host.all.size(), 2);
    for (const auto& guest : host.all) {
      ck_assert(guest.running);
      if (guest.name != "one") continue;
      ck_assert_int_eq(guest.pid, qemu);
      ck_assert(guest.attached == std::vector<std::string>{"kept"});
    }
    ck_assert(!has_ended(stream));
  }
  // A call that is under way when libvirtd dies.
  ck_assert_int_eq(kill(qemu, SIGSTOP), 0);
  Answer<void> cut_off;
  (*host).detach(kUuid, "kept", cut_off.done());
  ck_assert(host.find("two").running);
  libvirtd.end(SIGKILL);
  ck_assert_int_eq(kill(qemu, SIGCONT), 0);
  expect_code(cut_off.wait().error(), ErrorCode::kUnavailable, "kept");
  host.expect("disconnected\n");
  // The guest ends while nobody watches.
  ck_assert_int_eq(kill(qemu, SIGKILL), 0);
  libvirtd.start();
  host.expect("connected\n");
  ck_assert(!host.find("one").running);
  ck_assert(has_ended(stream));
}

// Half a minute: only when USBLEASE_TEST_SLOW is set.
void libvirtd_freezes(Host& host, const Libvirtd& libvirtd) {
  libvirtd.signal(SIGSTOP);
  const std::uint64_t begin_ns = boottime_now_ns();
  Answer<Guest> answer;
  (*host).find_guest("one", answer.done());
  expect_code(answer.wait().error(), ErrorCode::kUnavailable, "libvirt");
  host.expect("disconnected\n");
  printf("libvirtd frozen: given up after %llu ms\n", static_cast<unsigned long long>(ms_since(begin_ns)));
  libvirtd.signal(SIGCONT);
  host.expect("connected\n");
}

void all_of_it(const TemporaryDirectory& directory) {
  ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
  ck_assert_int_eq(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  Libvirtd libvirtd(directory);
  Host host;
  host.expect("disconnected\n");
  libvirtd.start();
  host.expect("connected\n");
  ck_assert_uint_eq(host.all.size(), 0);
  {
    const Virsh virsh;
    virsh.define_and_start("one", kUuid);
    host.expect("started one\n");
    ck_assert(host.started.running);
    const auto qemu = qemu_of(kRunDir, "one");
    ck_assert(qemu.has_value());
    ck_assert_int_eq(host.started.pid, qemu->pid());
    ck_assert(is_qemu_of(qemu->pid(), kRunDir, "one", kUuid).has_value());
    virsh.define_and_start("two", kOtherUuid);
    host.expect("started two\n");
    attach_and_detach(host, virsh, directory);
    a_hung_guest_holds_up_no_other(host, directory);
  }
  libvirtd_goes_and_comes(host, libvirtd, directory);
  const Virsh virsh;
  ck_assert_int_eq(virDomainDestroy(virsh.look_up("two").get()), 0);
  host.expect(std::string("stopped ") + kOtherUuid + "\n");
  if (getenv("USBLEASE_TEST_SLOW") != nullptr) libvirtd_freezes(host, libvirtd);
  libvirtd.end(SIGTERM);
}

START_TEST(with_a_real_libvirtd) {
  // In a child, so that a failure ends it, and this process cleans up after it.
  const TemporaryDirectory directory;
  const pid_t child = fork();
  if (child == 0) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    all_of_it(directory);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Libvirtd::clean_up(directory);
  ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() { return usblease::test::run_suite("libvirt", {usblease::host::with_a_real_libvirtd}, 150); }
