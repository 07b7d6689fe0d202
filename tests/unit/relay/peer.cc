#include "tests/unit/relay/peer.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <usbredirfilter.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/unit/relay/check_framework.h"

namespace usblease::test {
namespace {

Peer& self(void* priv) { return *static_cast<Peer*>(priv); }

template <typename Header>
std::string bytes_of(const Header* header) {
  return {reinterpret_cast<const char*>(header), sizeof *header};
}

// One recorder a kind of callback; the name comes with the type as a template argument.
template <std::size_t N>
struct Name {
  constexpr Name(const char (&text)[N]) { std::copy_n(text, N, value); }  // NOLINT: a literal as template argument
  char value[N];
};

template <Name kName>
void record_bare(void* priv) {
  self(priv).received.push_back({kName.value, 0, "", ""});
}
template <Name kName, typename Header>
void record_header(void* priv, Header* header) {
  self(priv).received.push_back({kName.value, 0, bytes_of(header), ""});
}
template <Name kName>
void record_id(void* priv, std::uint64_t id) {
  self(priv).received.push_back({kName.value, id, "", ""});
}
template <Name kName, typename Header>
void record_id_header(void* priv, std::uint64_t id, Header* header) {
  self(priv).received.push_back({kName.value, id, bytes_of(header), ""});
}
template <Name kName, typename Header>
void record_data(void* priv, std::uint64_t id, Header* header, std::uint8_t* data, int length) {
  std::string copy;
  if (length > 0) copy.assign(reinterpret_cast<const char*>(data), static_cast<std::size_t>(length));
  self(priv).received.push_back({kName.value, id, bytes_of(header), std::move(copy)});
  usbredirparser_free_packet_data(self(priv).parser(), data);
}

}  // namespace

std::string describe(const Packet& packet) {
  return packet.type + " id " + std::to_string(packet.id) + ", header " + std::to_string(packet.header.size()) +
         " bytes, data " + std::to_string(packet.data.size()) + " bytes";
}

Peer::Peer(UniqueFd fd, Role role, std::uint32_t caps) : fd_(std::move(fd)), parser_(usbredirparser_create()) {
  ck_assert(fcntl(fd_.get(), F_SETFL, fcntl(fd_.get(), F_GETFL) | O_NONBLOCK) == 0);
  set_callbacks();
  usbredirparser_init(parser_.get(), role == Role::kGuest ? "test guest" : "test endpoint", &caps, 1,
                      role == Role::kEndpoint ? usbredirparser_fl_usb_host : 0);
}

void Peer::set_callbacks() {
  usbredirparser* p = parser_.get();
  p->priv = this;
  p->log_func = [](void*, int, const char*) {};
  p->read_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t got = recv(self(priv).fd_.get(), data, static_cast<std::size_t>(count), MSG_DONTWAIT);
    if (got > 0) {
      self(priv).bytes_received_ += static_cast<std::size_t>(got);
      return static_cast<int>(got);
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    self(priv).end_of_stream_ = true;
    return -1;
  };
  p->write_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t sent = send(self(priv).fd_.get(), data, static_cast<std::size_t>(count), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return static_cast<int>(sent);
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  };
  p->hello_func = [](void* priv, usb_redir_hello_header* hello) {
    self(priv).hello_seen_ = true;
    self(priv).peer_version_.assign(hello->version, strnlen(hello->version, sizeof hello->version));
  };
  p->device_connect_func = record_header<"device_connect">;
  p->device_disconnect_func = record_bare<"device_disconnect">;
  p->device_disconnect_ack_func = record_bare<"device_disconnect_ack">;
  p->reset_func = record_bare<"reset">;
  p->interface_info_func = record_header<"interface_info">;
  p->ep_info_func = record_header<"ep_info">;
  p->set_configuration_func = record_id_header<"set_configuration">;
  p->get_configuration_func = record_id<"get_configuration">;
  p->configuration_status_func = record_id_header<"configuration_status">;
  p->set_alt_setting_func = record_id_header<"set_alt_setting">;
  p->get_alt_setting_func = record_id_header<"get_alt_setting">;
  p->alt_setting_status_func = record_id_header<"alt_setting_status">;
  p->start_iso_stream_func = record_id_header<"start_iso_stream">;
  p->stop_iso_stream_func = record_id_header<"stop_iso_stream">;
  p->iso_stream_status_func = record_id_header<"iso_stream_status">;
  p->start_interrupt_receiving_func = record_id_header<"start_interrupt_receiving">;
  p->stop_interrupt_receiving_func = record_id_header<"stop_interrupt_receiving">;
  p->interrupt_receiving_status_func = record_id_header<"interrupt_receiving_status">;
  p->alloc_bulk_streams_func = record_id_header<"alloc_bulk_streams">;
  p->free_bulk_streams_func = record_id_header<"free_bulk_streams">;
  p->bulk_streams_status_func = record_id_header<"bulk_streams_status">;
  p->cancel_data_packet_func = record_id<"cancel_data_packet">;
  p->filter_reject_func = record_bare<"filter_reject">;
  p->filter_filter_func = [](void* priv, usbredirfilter_rule* rules, int count) {
    char* text = usbredirfilter_rules_to_string(rules, count, ",", "|");
    self(priv).received.push_back({"filter_filter", 0, "", text});
    usbredirfilter_free(text);
    usbredirfilter_free(rules);
  };
  p->start_bulk_receiving_func = record_id_header<"start_bulk_receiving">;
  p->stop_bulk_receiving_func = record_id_header<"stop_bulk_receiving">;
  p->bulk_receiving_status_func = record_id_header<"bulk_receiving_status">;
  p->control_packet_func = record_data<"control_packet">;
  p->bulk_packet_func = record_data<"bulk_packet">;
  p->iso_packet_func = record_data<"iso_packet">;
  p->interrupt_packet_func = record_data<"interrupt_packet">;
  p->buffered_bulk_packet_func = record_data<"buffered_bulk_packet">;
}

bool Peer::flush() {
  if (!fd_) return false;
  const auto before = usbredirparser_get_bufferered_output_size(parser());
  if (before > 0) (void)usbredirparser_do_write(parser());
  return usbredirparser_get_bufferered_output_size(parser()) != before;
}

bool Peer::receive() {
  if (!fd_ || end_of_stream_) return false;
  const std::size_t before = bytes_received_;
  (void)usbredirparser_do_read(parser());
  return bytes_received_ != before || end_of_stream_;
}

void Peer::send_raw(std::string_view bytes) {
  ck_assert_int_eq(send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT),
                   static_cast<ssize_t>(bytes.size()));
}

std::uint32_t Peer::peer_caps() const {
  std::uint32_t caps = 0;
  for (int cap = 0; cap < 8; ++cap) {
    if (usbredirparser_peer_has_cap(parser_.get(), cap) != 0) caps |= 1U << static_cast<unsigned>(cap);
  }
  return caps;
}

}  // namespace usblease::test
