#include "tests/store/etcd_lab.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <random>
#include <utility>

#include "common/text.h"

namespace usblease::store_test {
namespace {

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

UniqueFd listen_on_loopback(std::uint16_t& port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  ck_assert(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  ck_assert(::listen(fd.get(), 64) == 0);
  socklen_t size = sizeof(address);
  ck_assert(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port = ntohs(address.sin_port);
  return fd;
}

pid_t run_child(const std::vector<std::string>& arguments, const std::string& log) {
  const pid_t parent = ::getpid();
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  // No ck_assert in the child: it would write to the file from which Check's runner reads meanwhile.
  if (pid < 0) ck_abort_msg("cannot fork");
  if (pid > 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);
  const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::dup2(fd, 1);
  ::dup2(fd, 2);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

// Moves what is there; false: that end is closed.
bool move_bytes(int from, int to) {
  std::array<char, 65'536> buffer{};
  const ssize_t got = ::recv(from, buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  return ::send(to, buffer.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL) == got;
}

}  // namespace

// Below the ports that outgoing connections get: a member that is started again must find its own one free.
std::uint16_t free_port() {
  std::random_device random;
  for (;;) {
    const auto port = static_cast<std::uint16_t>(20'000 + random() % 12'000);
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = loopback(port);
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return port;
  }
}

Certificates::Certificates(const std::string& name) : dir_(true) {
  write_file(dir_.file("extensions"),
             "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n");
  write_file(dir_.file("make"),
             "set -e; cd \"$1\"\n"
             "openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -subj \"/CN=$2 CA\" -days 2\n"
             "openssl req -newkey ed25519 -nodes -keyout host.key -out host.csr -subj \"/CN=$2\"\n"
             "openssl x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out host.pem -days 2 "
             "-extfile extensions\n");
  const pid_t pid = run_child({"sh", dir_.file("make"), dir_.file(""), name}, dir_.file("log"));
  int status = 0;
  ck_assert(::waitpid(pid, &status, 0) == pid);
  ck_assert_msg(status == 0, "openssl failed: %s", read_file(dir_.file("log")).c_str());
}

EtcdLab::EtcdLab(EtcdLabOptions options) : options_(std::move(options)) {
  for (int i = 0; i < options_.members; ++i) add_member();
  for (int i = 0; i < options_.members; ++i) start(i);
}

EtcdLab::~EtcdLab() {
  for (int i = 0; i < size(); ++i) kill(i);
}

void EtcdLab::add_member() { members_.push_back({free_port(), free_port(), -1}); }

std::string EtcdLab::url(std::uint16_t port) const {
  return (options_.certificates != nullptr ? "https" : "http") + std::string("://127.0.0.1:") + std::to_string(port);
}

std::string EtcdLab::address(int member) const {
  return "127.0.0.1:" + std::to_string(members_[static_cast<std::size_t>(member)].client_port);
}

std::string EtcdLab::peer_url(int member) const { return url(members_[static_cast<std::size_t>(member)].peer_port); }

std::string EtcdLab::initial_cluster() const {
  std::string text;
  for (int i = 0; i < options_.members; ++i) text += (i > 0 ? "," : "") + name(i) + "=" + peer_url(i);
  return text;
}

void EtcdLab::start(int member) { run(member, "new", initial_cluster()); }

void EtcdLab::start_new_learner(const std::string& initial_cluster) { run(size() - 1, "existing", initial_cluster); }

void EtcdLab::run(int index, const std::string& state, const std::string& cluster) {
  Member& member = members_[static_cast<std::size_t>(index)];
  ck_assert(member.pid < 0);
  const std::string client_url = url(member.client_port);
  std::vector<std::string> arguments = {"etcd",
                                        "--name=" + name(index),
                                        "--data-dir=" + dir_.file(name(index)),
                                        "--listen-client-urls=" + client_url,
                                        "--advertise-client-urls=" + client_url,
                                        "--listen-peer-urls=" + peer_url(index),
                                        "--initial-advertise-peer-urls=" + peer_url(index),
                                        "--initial-cluster=" + cluster,
                                        "--initial-cluster-state=" + state,
                                        "--initial-cluster-token=" + dir_.file(""),
                                        "--max-txn-ops=" + std::to_string(store::kTxnOpsMax),
                                        "--max-request-bytes=8388608",
                                        "--logger=zap",
                                        "--log-level=warn"};
  if (options_.certificates != nullptr) {
    const Certificates& pki = *options_.certificates;
    for (const char* side : {"", "peer-"}) {
      const std::string option = std::string("--") + side;
      arguments.insert(arguments.end(), {option + "cert-file=" + pki.cert(), option + "key-file=" + pki.key(),
                                         option + "trusted-ca-file=" + pki.ca(), option + "client-cert-auth=true"});
    }
  }
  arguments.insert(arguments.end(), options_.more_arguments.begin(), options_.more_arguments.end());
  member.pid = run_child(arguments, log(index));
}

void EtcdLab::kill(int member) {
  const pid_t pid = std::exchange(members_[static_cast<std::size_t>(member)].pid, -1);
  if (pid < 0) return;
  ::kill(pid, SIGKILL);
  // ECHILD: a test case that was forked off ends the lab of its parent, which reaps.
  ::waitpid(pid, nullptr, 0);
}

void EtcdLab::freeze(int member) { ::kill(members_[static_cast<std::size_t>(member)].pid, SIGSTOP); }
void EtcdLab::thaw(int member) { ::kill(members_[static_cast<std::size_t>(member)].pid, SIGCONT); }

store::EtcdOptions EtcdLab::options() const {
  store::EtcdOptions options;
  for (int i = 0; i < size(); ++i) options.endpoints.push_back(address(i));
  if (options_.certificates != nullptr) {
    options.ca_file = options_.certificates->ca();
    options.cert_file = options_.certificates->cert();
    options.key_file = options_.certificates->key();
  }
  options.key_prefix = "/usblease-test/" + random_hex(8) + "/";
  return options;
}

TcpRelay::TcpRelay(std::uint16_t to_port)
    : to_port_(to_port), listener_(listen_on_loopback(port_)), wake_(::eventfd(0, EFD_CLOEXEC)) {
  thread_ = std::thread([this] { run(); });
}

TcpRelay::~TcpRelay() {
  set(Mode::kEnd);
  thread_.join();
}

void TcpRelay::cut() { set(Mode::kCut); }
void TcpRelay::hold() { set(Mode::kHold); }
void TcpRelay::hold_answers() { set(Mode::kHoldAnswers); }
void TcpRelay::pass() { set(Mode::kPass); }

void TcpRelay::set(Mode mode) {
  const std::lock_guard lock(mutex_);
  mode_ = mode;
  if (mode == Mode::kCut) pairs_.clear();
  const std::uint64_t one = 1;
  ck_assert(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
}

void TcpRelay::run() {
  for (;;) {
    Mode mode = Mode::kPass;
    {
      const std::lock_guard lock(mutex_);
      mode = mode_;
    }
    if (mode == Mode::kEnd) return;
    wait_for_traffic(mode);
    const std::lock_guard lock(mutex_);
    if (mode_ != mode) continue;
    if (mode == Mode::kHold) continue;
    std::erase_if(pairs_, [mode](const Pair& pair) {
      if (!move_bytes(pair.client.get(), pair.server.get())) return true;
      return mode != Mode::kHoldAnswers && !move_bytes(pair.server.get(), pair.client.get());
    });
    accept_one();
  }
}

// Level-triggered: whoever wakes it for nothing costs a turn. The descriptors stay open while this waits but for those
// of cut(), which wakes it.
void TcpRelay::wait_for_traffic(Mode mode) {
  std::vector<pollfd> fds = {{wake_.get(), POLLIN, 0}};
  {
    const std::lock_guard lock(mutex_);
    if (mode != Mode::kHold) fds.push_back({listener_.get(), POLLIN, 0});
    for (const Pair& pair : pairs_) {
      if (mode == Mode::kHold) break;
      fds.push_back({pair.client.get(), POLLIN, 0});
      if (mode != Mode::kHoldAnswers) fds.push_back({pair.server.get(), POLLIN, 0});
    }
  }
  ::poll(fds.data(), fds.size(), -1);
  std::uint64_t count = 0;
  if ((fds[0].revents & POLLIN) != 0) ck_assert(::read(wake_.get(), &count, sizeof(count)) == sizeof(count));
}

void TcpRelay::accept_one() {
  pollfd ready{listener_.get(), POLLIN, 0};
  if (::poll(&ready, 1, 0) != 1) return;
  UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!client || mode_ == Mode::kCut) return;
  UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = loopback(to_port_);
  if (::connect(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return;
  const int on = 1;
  for (const int fd : {client.get(), server.get()}) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  pairs_.push_back({std::move(client), std::move(server)});
}

EtcdBackend::EtcdBackend(const EtcdLab& lab) : options_(lab.options()), addresses_(options_.endpoints) {}

std::unique_ptr<store::Store> EtcdBackend::open(store::Executor executor) {
  relays_.clear();
  options_.endpoints.clear();
  for (const std::string& address : addresses_) {
    relays_.push_back(
        std::make_unique<TcpRelay>(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)))));
    options_.endpoints.push_back(relays_.back()->address());
  }
  auto store = store::open_etcd_store(options_, std::move(executor));
  ck_assert_msg(store.has_value(), "%s", store ? "" : store.error().message.c_str());
  return std::move(*store);
}

void EtcdBackend::end(std::unique_ptr<store::Store> store, bool clean) {
  for (const auto& relay : relays_) {
    if (!clean) relay->cut();
  }
  store.reset();
}

}  // namespace usblease::store_test
