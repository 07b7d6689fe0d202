#include "tests/unit/cluster/transport_kit.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <atomic>

namespace usblease::test {

using namespace usblease::cluster;

bool wait_until(const std::function<bool()>& done, std::uint64_t ms) {
  bool over = false;
  const SourceHandle timer = run_after(ms * 1'000'000, [&] { over = true; });
  while (!done()) {
    if (over) return false;
    g_main_context_iteration(nullptr, TRUE);
  }
  return true;
}

TlsTransportOptions quick_options() {
  TlsTransportOptions options;
  options.listen = "127.0.0.1:0";
  options.retry_min_ms = 10;
  options.retry_max_ms = 100;
  return options;
}

Node::Node(const Identity& identity, TlsTransportOptions options) : host_id(identity.host_id) {
  on_request = [this](AcceptedId id, std::string payload) { transport->answer(id, std::move(payload)); };
  TransportEvents events;
  events.up = [this](const std::string& host) { story.push_back("up " + host); };
  events.down = [this](const std::string& host, DownReason reason, const std::string& why) {
    story.push_back("down " + host);
    downs.push_back({reason, why});
  };
  events.answer = [this](const std::string& /*host*/, std::string payload) { answers.push_back(std::move(payload)); };
  events.accepted = [this](AcceptedId id, const std::string& host) {
    story.push_back("accepted " + host);
    accepted[id] = host;
  };
  events.request = [this](AcceptedId id, std::string payload) {
    ck_must(accepted.contains(id));
    requests.push_back(payload);
    on_request(id, std::move(payload));
  };
  events.gone = [this](AcceptedId id) {
    ck_must(accepted.contains(id));
    story.push_back("gone " + accepted[id]);
    accepted.erase(id);
  };
  events.join = [this](std::string payload, std::function<void(std::string)> answer) {
    ++joins;
    if (on_join) on_join(std::move(payload), std::move(answer));
  };
  auto opened = TlsTransport::open(identity, std::move(options), std::move(events));
  ck_assert_ok(opened);
  transport = std::move(*opened);
}

RawPeer::RawPeer(UniqueFd fd, const Options& options) : fd_(std::move(fd)) {
  gnutls_certificate_allocate_credentials(&credentials_);
  if (options.identity != nullptr) {
    const auto text = [](const std::string& pem) {
      return gnutls_datum_t{const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(pem.data())),
                            static_cast<unsigned>(pem.size())};
    };
    const gnutls_datum_t certificate = text(options.identity->certificate);
    const gnutls_datum_t key = text(options.identity->key);
    ck_must(gnutls_certificate_set_x509_key_mem2(credentials_, &certificate, &key, GNUTLS_X509_FMT_PEM, nullptr, 0) >=
            0);
  }
  gnutls_init(&session_, (options.server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NO_SIGNAL);
  ck_must(gnutls_priority_set_direct(session_, options.priority.c_str(), nullptr) == 0);
  gnutls_credentials_set(session_, GNUTLS_CRD_CERTIFICATE, credentials_);
  if (!options.alpn.empty()) {
    gnutls_datum_t name{const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(options.alpn.data())),
                        static_cast<unsigned>(options.alpn.size())};
    gnutls_alpn_set_protocols(session_, &name, 1, 0);
  }
  gnutls_transport_set_int(session_, fd_.get());
}

RawPeer::~RawPeer() {
  gnutls_deinit(session_);
  gnutls_certificate_free_credentials(credentials_);
}

int RawPeer::handshake() {
  int error = 0;
  do {
    error = gnutls_handshake(session_);
  } while (error < 0 && gnutls_error_is_fatal(error) == 0 && error != GNUTLS_E_AGAIN);
  return error;
}

bool RawPeer::send(const std::string& bytes) {
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count = gnutls_record_send(session_, bytes.data() + sent, bytes.size() - sent);
    if (count < 0) return false;
    sent += static_cast<std::size_t>(count);
  }
  return true;
}

std::string RawPeer::receive(std::size_t bytes) {
  std::string got;
  std::array<char, 4096> chunk{};
  while (got.size() < bytes) {
    const ssize_t count = gnutls_record_recv(session_, chunk.data(), std::min(chunk.size(), bytes - got.size()));
    error_ = count < 0 ? static_cast<int>(count) : 0;
    if (count <= 0) break;
    got.append(chunk.data(), static_cast<std::size_t>(count));
  }
  return got;
}

UniqueFd connect_to(std::uint16_t port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval bound{20, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound));
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return {};
  return fd;
}

Listening listen_anywhere() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ck_must(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
  ck_must(listen(fd.get(), 8) == 0);
  ck_must(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  return {std::move(fd), ntohs(address.sin_port)};
}

void beside(const std::function<void()>& work) {
  bool finished = false;
  std::thread thread([&] {
    work();
    post([&] { finished = true; });
  });
  const bool in_time = wait_until([&] { return finished; }, 2 * kPatienceMs);
  if (!in_time) ck_abort_msg("the raw peer hangs");
  thread.join();
}

}  // namespace usblease::test
