// probe_endpoint: a usbredir guest that only wants to know what is plugged in.
#include <sys/socket.h>
#include <usbredirfilter.h>
#include <usbredirparser.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/main_loop.h"
#include "common/text.h"
#include "daemon/host/endpoint.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
// A hello, ep_info, interface_info and device_connect are less than 1 KiB.
constexpr std::size_t kBytesMax = 64UL * 1024;

struct ParserFree {
  void operator()(usbredirparser* parser) const { usbredirparser_destroy(parser); }
};

class Probe : public EndpointCall {
 public:
  using Done = std::function<void(Result<EndpointDevice>)>;

  Probe(std::string address, std::uint32_t timeout_ms, Done done)
      : address_(std::move(address)), timeout_ms_(timeout_ms), done_(std::move(done)) {}

  void start() {
    timer_ = run_after(timeout_ms_ * kNsPerMs, [this] { on_timeout(); });
    call_ = connect_endpoint(address_, timeout_ms_, [this](Result<UniqueFd> fd) {
      if (!fd) return finish(tl::unexpected(fd.error()));
      fd_ = std::move(*fd);
      say_hello();
    });
  }

 private:
  static Probe& self(void* priv) { return *static_cast<Probe*>(priv); }
  // For packets that have no place before the guest has asked for something.
  template <typename... Arguments>
  static void refuse(void* priv, Arguments... /*packet*/) {
    self(priv).bad_ = true;
  }
  template <typename Header>
  static void refuse_data(void* priv, std::uint64_t /*id*/, Header* /*header*/, std::uint8_t* data, int /*length*/) {
    self(priv).bad_ = true;
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
  }

  void say_hello();
  void set_callbacks(usbredirparser* parser);
  void on_ready();
  void on_timeout();
  void on_end_of_stream();
  int read_some(std::uint8_t* data, int count);
  int write_some(const std::uint8_t* data, int count);
  void finish(Result<EndpointDevice> result);
  [[nodiscard]] std::string where() const { return "the usbredir endpoint at " + escape_text(address_); }

  std::string address_;
  std::uint32_t timeout_ms_;
  Done done_;
  SourceHandle timer_;
  std::unique_ptr<EndpointCall> call_;
  UniqueFd fd_;
  SourceHandle watch_;
  std::unique_ptr<usbredirparser, ParserFree> parser_;
  EndpointDevice device_;
  std::size_t bytes_ = 0;
  bool hello_seen_ = false;
  bool device_seen_ = false;
  bool bad_ = false;
  bool end_of_stream_ = false;
  int error_number_ = 0;
};

void Probe::say_hello() {
  parser_.reset(usbredirparser_create());
  if (!parser_) return finish(fail(ErrorCode::kInternal, "out of memory"));
  set_callbacks(parser_.get());
  std::array<std::uint32_t, USB_REDIR_CAPS_SIZE> caps{};
  for (const int cap : {usb_redir_cap_connect_device_version, usb_redir_cap_ep_info_max_packet_size,
                        usb_redir_cap_64bits_ids, usb_redir_cap_32bits_bulk_length}) {
    usbredirparser_caps_set_cap(caps.data(), cap);
  }
  usbredirparser_init(parser_.get(), "usbleased", caps.data(), static_cast<int>(caps.size()), 0);
  (void)usbredirparser_do_write(parser_.get());  // one small packet fits into a fresh stream
  watch_ = watch_fd(fd_.get(), G_IO_IN, [this](GIOCondition) { on_ready(); });
}

void Probe::set_callbacks(usbredirparser* p) {
  p->priv = this;
  p->log_func = [](void* priv, int level, const char*) {
    if (level == usbredirparser_error) self(priv).bad_ = true;
  };
  p->read_func = [](void* priv, std::uint8_t* data, int count) { return self(priv).read_some(data, count); };
  p->write_func = [](void* priv, std::uint8_t* data, int count) { return self(priv).write_some(data, count); };
  p->hello_func = [](void* priv, usb_redir_hello_header* hello) {
    self(priv).hello_seen_ = true;
    self(priv).device_.version = escape_text(std::string_view(hello->version, strnlen(hello->version, 64)));
  };
  p->device_connect_func = [](void* priv, usb_redir_device_connect_header* header) {
    self(priv).device_seen_ = true;
    self(priv).device_.vendor = header->vendor_id;
    self(priv).device_.product = header->product_id;
  };
  p->interface_info_func = [](void*, usb_redir_interface_info_header*) {};
  p->ep_info_func = [](void*, usb_redir_ep_info_header*) {};
  p->filter_filter_func = [](void*, usbredirfilter_rule* rules, int) { usbredirfilter_free(rules); };
  p->device_disconnect_func = refuse;
  p->configuration_status_func = refuse;
  p->alt_setting_status_func = refuse;
  p->iso_stream_status_func = refuse;
  p->interrupt_receiving_status_func = refuse;
  p->bulk_streams_status_func = refuse;
  p->bulk_receiving_status_func = refuse;
  p->control_packet_func = refuse_data;
  p->bulk_packet_func = refuse_data;
  p->iso_packet_func = refuse_data;
  p->interrupt_packet_func = refuse_data;
  p->buffered_bulk_packet_func = refuse_data;
  // libusbredirparser lets nothing else through to the usb-guest's side.
}

int Probe::write_some(const std::uint8_t* data, int count) {
  const ssize_t sent = send(fd_.get(), data, static_cast<std::size_t>(count), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) return static_cast<int>(sent);
  return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

int Probe::read_some(std::uint8_t* data, int count) {
  if (bad_ || device_seen_) return 0;
  const ssize_t got = recv(fd_.get(), data, static_cast<std::size_t>(count), MSG_DONTWAIT);
  if (got > 0) {
    bytes_ += static_cast<std::size_t>(got);
    if (bytes_ > kBytesMax) bad_ = true;
    return static_cast<int>(got);
  }
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  error_number_ = got == 0 ? 0 : errno;
  end_of_stream_ = true;
  return -1;
}

void Probe::on_ready() {
  if (!device_seen_) {
    if (usbredirparser_do_read(parser_.get()) == usbredirparser_read_parse_error) bad_ = true;
    if (bad_) {
      return finish(
          fail(ErrorCode::kBadInput, where() + " sends what is not usbredir; is it another service's address?"));
    }
    if (end_of_stream_) return on_end_of_stream();
    if (device_seen_) (void)shutdown(fd_.get(), SHUT_WR);
    return;
  }
  std::array<char, 4096> discarded{};
  const ssize_t got = recv(fd_.get(), discarded.data(), discarded.size(), MSG_DONTWAIT);
  if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
  if (got == 0 || errno == ECONNRESET) return finish(device_);
  error_number_ = errno;
  on_end_of_stream();
}

void Probe::on_end_of_stream() {
  if (error_number_ != 0 && error_number_ != ECONNRESET) {
    return finish(fail(ErrorCode::kUnavailable, where() + ": " + g_strerror(error_number_)));
  }
  if (bytes_ > 0 && !hello_seen_) {
    return finish(fail(ErrorCode::kBadInput, where() + " closed the stream within its hello"));
  }
  finish(fail(ErrorCode::kUnavailable,
              where() + " closed the stream without announcing a device; is the device plugged in there?"));
}

void Probe::on_timeout() {
  const std::string time = " within " + std::to_string(timeout_ms_) + " ms";
  if (!fd_) return finish(fail(ErrorCode::kUnavailable, where() + " does not answer" + time));
  if (!hello_seen_) {
    return finish(fail(ErrorCode::kTimedOut, where() + " took the connection but says no hello" + time +
                                                 "; does it serve another stream, or is it no usbredir server?"));
  }
  if (!device_seen_) {
    return finish(
        fail(ErrorCode::kUnavailable, where() + " announces no device" + time + "; is the device plugged in there?"));
  }
  finish(fail(ErrorCode::kTimedOut, where() + " does not end the stream" + time +
                                        " after we did, so it could never be fenced; see docs/relay.md"));
}

void Probe::finish(Result<EndpointDevice> result) {
  timer_.cancel();
  watch_.cancel();
  // Destroys us, perhaps.
  if (const auto done = std::exchange(done_, nullptr)) done(std::move(result));
}

}  // namespace

std::unique_ptr<EndpointCall> probe_endpoint(const std::string& address, std::uint32_t timeout_ms,
                                             std::function<void(Result<EndpointDevice>)> done) {
  auto probe = std::make_unique<Probe>(address, timeout_ms, std::move(done));
  probe->start();
  return probe;
}

}  // namespace usblease::host
