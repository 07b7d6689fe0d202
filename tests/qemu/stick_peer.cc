// A memory stick behind usbredir, as usbredirserver would offer a real one.
// usage: stick_peer SOCKET WITNESS_FILE LEASE_PAGE     prints "ready" when it listens
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <usbredirparser.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "common/fd.h"
#include "tests/qemu/stick.h"
#include "tests/qemu/witness.h"

namespace usblease::test {
namespace {

class Peer {
 public:
  explicit Peer(Witness& witness) : witness_(witness) {}

  void serve(int fd) {
    fd_ = fd;
    stick_ = Stick();
    parser_.reset(usbredirparser_create());
    usbredirparser* const parser = parser_.get();
    parser->priv = this;
    parser->log_func = [](void*, int level, const char* text) {
      if (level <= usbredirparser_warning) std::fprintf(stderr, "stick_peer: %s\n", text);
    };
    parser->read_func = [](void* self, std::uint8_t* data, int size) {
      return static_cast<Peer*>(self)->read(data, size);
    };
    parser->write_func = [](void* self, std::uint8_t* data, int size) {
      return static_cast<Peer*>(self)->write(data, size);
    };
    parser->hello_func = [](void* self, usb_redir_hello_header*) { static_cast<Peer*>(self)->introduce(); };
    parser->reset_func = [](void* self) {
      ++static_cast<Peer*>(self)->witness_.seen->resets;
      static_cast<Peer*>(self)->witness_.packet();
    };
    parser->set_configuration_func = [](void* self, std::uint64_t id, usb_redir_set_configuration_header* header) {
      static_cast<Peer*>(self)->configured(id, header->configuration);
    };
    parser->get_configuration_func = [](void* self, std::uint64_t id) { static_cast<Peer*>(self)->configured(id, 1); };
    parser->set_alt_setting_func = [](void* self, std::uint64_t id, usb_redir_set_alt_setting_header* header) {
      static_cast<Peer*>(self)->witness_.packet();
      usb_redir_alt_setting_status_header answer{};
      answer.interface = header->interface;
      answer.alt = header->alt;
      usbredirparser_send_alt_setting_status(static_cast<Peer*>(self)->parser_.get(), id, &answer);
    };
    parser->cancel_data_packet_func = [](void*, std::uint64_t) {};
    parser->filter_reject_func = [](void*) {};
    parser->filter_filter_func = [](void*, usbredirfilter_rule* rules, int) { free(rules); };
    parser->control_packet_func = [](void* self, std::uint64_t id, usb_redir_control_packet_header* header,
                                     std::uint8_t* data, int) { static_cast<Peer*>(self)->control(id, *header, data); };
    parser->bulk_packet_func = [](void* self, std::uint64_t id, usb_redir_bulk_packet_header* header,
                                  std::uint8_t* data,
                                  int size) { static_cast<Peer*>(self)->bulk(id, *header, data, size); };
    std::uint32_t caps[USB_REDIR_CAPS_SIZE] = {};
    for (const int cap :
         {usb_redir_cap_connect_device_version, usb_redir_cap_filter, usb_redir_cap_ep_info_max_packet_size,
          usb_redir_cap_64bits_ids, usb_redir_cap_32bits_bulk_length}) {
      usbredirparser_caps_set_cap(caps, cap);
    }
    usbredirparser_init(parser, "stick_peer", caps, USB_REDIR_CAPS_SIZE, usbredirparser_fl_usb_host);
    ++witness_.seen->opens;
    while (turn()) {
    }
    ++witness_.seen->closes;
    witness_.seen->last_close_ns = boottime_now_ns();
  }

 private:
  bool turn() {
    pollfd waiting{fd_, POLLIN, 0};
    if (usbredirparser_has_data_to_write(parser_.get())) waiting.events |= POLLOUT;
    if (poll(&waiting, 1, -1) < 0) return errno == EINTR;
    if ((waiting.revents & POLLOUT) != 0 && usbredirparser_do_write(parser_.get()) != 0) return false;
    if ((waiting.revents & (POLLIN | POLLHUP | POLLERR)) == 0) return true;
    return usbredirparser_do_read(parser_.get()) == 0 && usbredirparser_do_write(parser_.get()) == 0;
  }

  int read(std::uint8_t* data, int size) const {
    const ssize_t got = ::read(fd_, data, static_cast<std::size_t>(size));
    if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    return got == 0 ? -1 : static_cast<int>(got);
  }
  int write(const std::uint8_t* data, int size) const {
    const ssize_t wrote = send(fd_, data, static_cast<std::size_t>(size), MSG_NOSIGNAL);
    if (wrote < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    return static_cast<int>(wrote);
  }

  void introduce() {
    usb_redir_interface_info_header interfaces{};
    interfaces.interface_count = 1;
    interfaces.interface_class[0] = 8;
    interfaces.interface_subclass[0] = 6;
    interfaces.interface_protocol[0] = 0x50;
    usbredirparser_send_interface_info(parser_.get(), &interfaces);
    usb_redir_ep_info_header endpoints{};
    for (auto& type : endpoints.type) type = usb_redir_type_invalid;
    const auto endpoint = [&](unsigned index, std::uint8_t type, std::uint16_t size) {
      endpoints.type[index] = type;
      endpoints.max_packet_size[index] = size;
    };
    endpoint(0, usb_redir_type_control, 64);
    endpoint(16, usb_redir_type_control, 64);
    endpoint(kStickOut, usb_redir_type_bulk, 512);
    endpoint(16 + (kStickIn & 0xfU), usb_redir_type_bulk, 512);
    usbredirparser_send_ep_info(parser_.get(), &endpoints);
    usb_redir_device_connect_header device{};
    device.speed = usb_redir_speed_high;
    device.vendor_id = kStickVendor;
    device.product_id = kStickProduct;
    device.device_version_bcd = 0x0100;
    usbredirparser_send_device_connect(parser_.get(), &device);
  }

  void configured(std::uint64_t id, std::uint8_t configuration) {
    witness_.packet();
    usb_redir_configuration_status_header answer{};
    answer.configuration = configuration;
    usbredirparser_send_configuration_status(parser_.get(), id, &answer);
  }

  void control(std::uint64_t id, usb_redir_control_packet_header header, std::uint8_t* data) {
    witness_.packet();
    usbredirparser_free_packet_data(parser_.get(), data);
    auto answer = Stick::control(header.requesttype, header.request, header.value, header.length);
    header.status = answer ? usb_redir_success : usb_redir_stall;
    if (!answer) answer.emplace();
    header.length = static_cast<std::uint16_t>(answer->size());
    usbredirparser_send_control_packet(parser_.get(), id, &header, answer->data(), static_cast<int>(answer->size()));
  }

  void bulk(std::uint64_t id, usb_redir_bulk_packet_header header, std::uint8_t* data, int size) {
    witness_.packet();
    header.status = usb_redir_success;
    if ((header.endpoint & 0x80) == 0) {
      stick_.bulk_out({data, static_cast<std::size_t>(size)});
      usbredirparser_free_packet_data(parser_.get(), data);
      usbredirparser_send_bulk_packet(parser_.get(), id, &header, nullptr, 0);
      return;
    }
    auto answer = stick_.bulk_in(header.length | static_cast<std::size_t>(header.length_high) << 16);
    header.length = static_cast<std::uint16_t>(answer.size());
    header.length_high = static_cast<std::uint16_t>(answer.size() >> 16);
    usbredirparser_send_bulk_packet(parser_.get(), id, &header, answer.data(), static_cast<int>(answer.size()));
  }

  Witness& witness_;
  int fd_ = -1;
  Stick stick_;
  std::unique_ptr<usbredirparser, void (*)(usbredirparser*)> parser_{nullptr, usbredirparser_destroy};
};

int serve(const char* path, Witness& witness) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (std::strlen(path) >= sizeof address.sun_path) return 1;
  std::strcpy(address.sun_path, path);
  unlink(path);
  const UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener.get(), 4) != 0) {
    std::perror(path);
    return 1;
  }
  std::puts("ready");
  std::fflush(stdout);
  Peer peer(witness);
  for (;;) {
    const UniqueFd stream(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (stream) peer.serve(stream.get());
  }
}

}  // namespace
}  // namespace usblease::test

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::signal(SIGPIPE, SIG_IGN);
  usblease::test::Witness witness(argv[2], argv[3]);
  return usblease::test::serve(argv[1], witness);
}
