#include "tests/cluster/guest_stream.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <vector>

#include "tests/devices/cdc_descriptors.h"

namespace usblease::cluster_test {

GuestStream::GuestStream(UniqueFd fd) : fd_(std::move(fd)), parser_(usbredirparser_create()) {
  set_callbacks();
  std::array<std::uint32_t, USB_REDIR_CAPS_SIZE> caps{};
  for (const int cap : {usb_redir_cap_connect_device_version, usb_redir_cap_ep_info_max_packet_size,
                        usb_redir_cap_64bits_ids, usb_redir_cap_32bits_bulk_length}) {
    usbredirparser_caps_set_cap(caps.data(), cap);
  }
  usbredirparser_init(parser_.get(), "lease-holder", caps.data(), static_cast<int>(caps.size()), 0);
  pump();
}

void GuestStream::set_callbacks() {
  usbredirparser* p = parser_.get();
  p->priv = this;
  p->log_func = [](void*, int, const char*) {};
  p->read_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t got = recv(self(priv).fd_.get(), data, static_cast<std::size_t>(count), MSG_DONTWAIT);
    if (got > 0) return static_cast<int>(got);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    self(priv).ended_ = true;
    return -1;
  };
  p->write_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t sent = send(self(priv).fd_.get(), data, static_cast<std::size_t>(count), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return static_cast<int>(sent);
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  };
  p->hello_func = [](void*, usb_redir_hello_header*) {};
  p->device_connect_func = [](void* priv, usb_redir_device_connect_header*) { self(priv).device_seen_ = true; };
  p->device_disconnect_func = [](void* priv) { self(priv).device_seen_ = false; };
  p->interface_info_func = [](void*, usb_redir_interface_info_header*) {};
  p->ep_info_func = [](void*, usb_redir_ep_info_header*) {};
  p->bulk_packet_func = [](void* priv, std::uint64_t, usb_redir_bulk_packet_header* header, std::uint8_t* data, int) {
    if (header->status == usb_redir_success) ++self(priv).completed_;
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
  };
}

bool GuestStream::has_output() const { return usbredirparser_has_data_to_write(parser_.get()) > 0; }

void GuestStream::write_line(const std::string& line) {
  std::vector<std::uint8_t> bytes(line.begin(), line.end());
  bytes.push_back('\n');
  usb_redir_bulk_packet_header header{};
  header.endpoint = dongle::kBulkOut;
  header.length = static_cast<std::uint16_t>(bytes.size());
  usbredirparser_send_bulk_packet(parser_.get(), next_id_++, &header, bytes.data(), static_cast<int>(bytes.size()));
  pump();
}

void GuestStream::pump() {
  if (ended_) return;
  (void)usbredirparser_do_read(parser_.get());
  if (!ended_ && has_output()) (void)usbredirparser_do_write(parser_.get());
}

}  // namespace usblease::cluster_test
