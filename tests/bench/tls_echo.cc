#include "tests/bench/tls_echo.h"

#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <thread>

#include "common/fd.h"

namespace usblease::bench {
namespace {

constexpr std::size_t kBytes = 128;
constexpr const char* kTls13Only = "NORMAL:-VERS-ALL:+VERS-TLS1.3";

// Two ends of a TCP connection on loopback.
bool connect_pair(UniqueFd& server, UniqueFd& client) {
  const UniqueFd listening(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listening.get(), generic, length) != 0 || listen(listening.get(), 1) != 0 ||
      getsockname(listening.get(), generic, &length) != 0)
    return false;
  client.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connect(client.get(), generic, length) != 0) return false;
  server.reset(accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int on = 1;
  for (const int fd : {server.get(), client.get()}) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return static_cast<bool>(server);
}

class End {
 public:
  End(unsigned flags, gnutls_certificate_credentials_t credentials, UniqueFd fd) : fd_(std::move(fd)) {
    gnutls_init(&session_, flags);
    gnutls_priority_set_direct(session_, kTls13Only, nullptr);
    gnutls_credentials_set(session_, GNUTLS_CRD_CERTIFICATE, credentials);
    if ((flags & GNUTLS_SERVER) != 0) gnutls_certificate_server_set_request(session_, GNUTLS_CERT_REQUIRE);
    gnutls_session_set_verify_cert(session_, nullptr, 0);
    gnutls_transport_set_int(session_, fd_.get());
  }
  ~End() { gnutls_deinit(session_); }
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  bool shake_hands() {
    int done = GNUTLS_E_AGAIN;
    while (done < 0 && gnutls_error_is_fatal(done) == 0) done = gnutls_handshake(session_);
    return done == GNUTLS_E_SUCCESS;
  }
  bool put(const std::array<char, kBytes>& bytes) {
    return gnutls_record_send(session_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  }
  bool get(std::array<char, kBytes>& bytes) {
    ssize_t count = GNUTLS_E_AGAIN;
    while (count == GNUTLS_E_AGAIN || count == GNUTLS_E_INTERRUPTED)
      count = gnutls_record_recv(session_, bytes.data(), bytes.size());
    return count == static_cast<ssize_t>(bytes.size());
  }
  void hang_up() { shutdown(fd_.get(), SHUT_RDWR); }

 private:
  UniqueFd fd_;
  gnutls_session_t session_ = nullptr;
};

}  // namespace

struct TlsEcho::Impl {
  ~Impl() {
    if (client) client->hang_up();
    if (answering.joinable()) answering.join();
    client.reset();
    server.reset();
    gnutls_certificate_free_credentials(credentials);
  }
  gnutls_certificate_credentials_t credentials = nullptr;
  std::unique_ptr<End> server, client;
  std::thread answering;
};

TlsEcho::TlsEcho(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TlsEcho::TlsEcho(TlsEcho&&) noexcept = default;
TlsEcho::~TlsEcho() = default;

Result<TlsEcho> TlsEcho::connect(const std::string& ca_file, const std::string& cert_file,
                                 const std::string& key_file) {
  auto impl = std::make_unique<Impl>();
  gnutls_certificate_allocate_credentials(&impl->credentials);
  UniqueFd server_fd, client_fd;
  if (gnutls_certificate_set_x509_trust_file(impl->credentials, ca_file.c_str(), GNUTLS_X509_FMT_PEM) < 1 ||
      gnutls_certificate_set_x509_key_file(impl->credentials, cert_file.c_str(), key_file.c_str(),
                                           GNUTLS_X509_FMT_PEM) != GNUTLS_E_SUCCESS ||
      !connect_pair(server_fd, client_fd))
    return fail(ErrorCode::kInternal, "cannot set up a TLS connection to measure with");
  impl->server = std::make_unique<End>(GNUTLS_SERVER, impl->credentials, std::move(server_fd));
  impl->client = std::make_unique<End>(GNUTLS_CLIENT, impl->credentials, std::move(client_fd));
  impl->answering = std::thread([server = impl->server.get()] {
    std::array<char, kBytes> bytes{};
    if (!server->shake_hands()) return;
    while (server->get(bytes) && server->put(bytes)) {
    }
  });
  if (!impl->client->shake_hands()) return fail(ErrorCode::kInternal, "the TLS handshake to measure with failed");
  TlsEcho echo(std::move(impl));
  if (!echo.round_trip()) return fail(ErrorCode::kInternal, "the TLS connection to measure with broke");
  return echo;
}

bool TlsEcho::round_trip() {
  std::array<char, kBytes> bytes{};
  return impl_->client->put(bytes) && impl_->client->get(bytes);
}

}  // namespace usblease::bench
