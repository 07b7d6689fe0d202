// usbredir-dongle: a software USB device that is offered over usbredir, as usbredirserver offers a real one. A serial
// adapter (CDC-ACM) that answers the line "ping N" with "pong N SERIAL". One stream at a time.
//
//   usbredir-dongle --listen unix:PATH|tcp:HOST:PORT [--serial S] [--vendor HEX] [--product HEX] [--log FILE]
//                   [--misbehave garbage|close-mid-packet|silent|no-device|never-close]
//
// Prints "ready" when it listens ("ready PORT" for tcp). --log: one JSON object a line, for each packet that reached
// the device, with CLOCK_BOOTTIME:
//   {"t_ns":1,"stream":1,"event":"packet","type":"bulk","endpoint":2,"length":7}
//   events: connect, hello, packet, line (with "text"), eof, end
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <usbredirfilter.h>
#include <usbredirparser.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>

#include "common/boottime.h"
#include "common/error.h"
#include "common/fd.h"
#include "common/text.h"
#include "common/unix_socket.h"
#include "tests/devices/cdc_descriptors.h"

namespace usblease::dongle {
namespace {

enum class Misbehaviour : std::uint8_t { kNone, kGarbage, kCloseMidPacket, kSilent, kNoDevice, kNeverClose };

struct Options {
  std::string listen;
  std::string serial = "0001";
  std::uint16_t vendor = 0x1209;  // pid.codes, product for tests
  std::uint16_t product = 0x0001;
  std::string log;
  Misbehaviour misbehaviour = Misbehaviour::kNone;
};

class Log {
 public:
  explicit Log(const std::string& path) : file_(path.empty() ? nullptr : std::fopen(path.c_str(), "ae"), std::fclose) {
    if (!path.empty() && !file_) std::perror(path.c_str());
  }
  void begin_stream() { ++stream_; }
  // `more`: further members of the object, beginning with a comma.
  void write(const char* event, const std::string& more = "") {
    if (!file_) return;
    std::fprintf(file_.get(), "{\"t_ns\":%llu,\"stream\":%u,\"event\":\"%s\"%s}\n",
                 static_cast<unsigned long long>(boottime_now_ns()), stream_, event, more.c_str());
    std::fflush(file_.get());  // whoever reads it must see what happened, also when we are killed
  }
  void packet(const char* type, unsigned endpoint, std::size_t length) {
    write("packet", std::string(",\"type\":\"") + type + "\",\"endpoint\":" + std::to_string(endpoint) +
                        ",\"length\":" + std::to_string(length));
  }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  unsigned stream_ = 0;
};

// The device and its stream. Dies with the stream.
class Dongle {
 public:
  Dongle(int fd, const Options& options, Log* log);
  // Until the stream is over.
  void serve();

 private:
  struct ParserFree {
    void operator()(usbredirparser* parser) const { usbredirparser_destroy(parser); }
  };
  struct PendingRead {
    std::uint64_t id;
    usb_redir_bulk_packet_header header;
  };
  static Dongle& self(void* priv) { return *static_cast<Dongle*>(priv); }

  void set_callbacks(usbredirparser* p);
  void set_status_callbacks(usbredirparser* p);
  void announce();
  void send_layout();
  void reset();
  void on_control(std::uint64_t id, usb_redir_control_packet_header header, std::size_t length);
  std::vector<std::uint8_t> answer_control(const usb_redir_control_packet_header& header, std::uint8_t* status) const;
  std::vector<std::uint8_t> answer_descriptor(std::uint16_t value, std::uint8_t* status) const;
  void on_bulk(std::uint64_t id, usb_redir_bulk_packet_header header, const std::uint8_t* data, std::size_t length);
  void on_line(const std::string& line);
  void complete_reads();
  void cancel(std::uint64_t id);
  void misbehave();

  int fd_;
  const Options& options_;
  Log* log_;
  std::unique_ptr<usbredirparser, ParserFree> parser_;
  std::string line_;                 // what the guest wrote, up to the end of a line
  std::string output_;               // for the guest to read
  std::deque<PendingRead> pending_;  // reads that wait for output
  std::uint8_t configuration_ = 1;
  bool end_of_stream_ = false;
};

constexpr std::size_t kLineMax = 4096;

Dongle::Dongle(int fd, const Options& options, Log* log) : fd_(fd), options_(options), log_(log) {
  log_->begin_stream();
  log_->write("connect");
  parser_.reset(usbredirparser_create());
  set_callbacks(parser_.get());
  set_status_callbacks(parser_.get());
  std::array<std::uint32_t, USB_REDIR_CAPS_SIZE> caps{};
  for (const int cap :
       {usb_redir_cap_connect_device_version, usb_redir_cap_filter, usb_redir_cap_device_disconnect_ack,
        usb_redir_cap_ep_info_max_packet_size, usb_redir_cap_64bits_ids, usb_redir_cap_32bits_bulk_length}) {
    usbredirparser_caps_set_cap(caps.data(), cap);
  }
  usbredirparser_init(parser_.get(), "usbredir-dongle", caps.data(), static_cast<int>(caps.size()),
                      usbredirparser_fl_usb_host);
}

void Dongle::set_callbacks(usbredirparser* p) {
  p->priv = this;
  p->log_func = [](void*, int level, const char* text) {
    if (level <= usbredirparser_warning) std::fprintf(stderr, "usbredir-dongle: %s\n", text);
  };
  p->read_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t got = recv(self(priv).fd_, data, static_cast<std::size_t>(count), MSG_DONTWAIT);
    if (got > 0) return static_cast<int>(got);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    self(priv).end_of_stream_ = true;
    return -1;
  };
  p->write_func = [](void* priv, std::uint8_t* data, int count) {
    const ssize_t sent = send(self(priv).fd_, data, static_cast<std::size_t>(count), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return static_cast<int>(sent);
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  };
  p->hello_func = [](void* priv, usb_redir_hello_header*) {
    self(priv).log_->write("hello");
    if (self(priv).options_.misbehaviour != Misbehaviour::kNoDevice) self(priv).announce();
  };
  p->reset_func = [](void* priv) {
    self(priv).log_->packet("reset", 0, 0);
    self(priv).reset();
  };
  p->control_packet_func = [](void* priv, std::uint64_t id, usb_redir_control_packet_header* header, std::uint8_t* data,
                              int length) {
    self(priv).on_control(id, *header, static_cast<std::size_t>(length));
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
  };
  p->bulk_packet_func = [](void* priv, std::uint64_t id, usb_redir_bulk_packet_header* header, std::uint8_t* data,
                           int length) {
    self(priv).on_bulk(id, *header, data, static_cast<std::size_t>(length));
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
  };
  p->interrupt_packet_func = [](void* priv, std::uint64_t id, usb_redir_interrupt_packet_header* header,
                                std::uint8_t* data, int length) {
    self(priv).log_->packet("interrupt", header->endpoint, static_cast<std::size_t>(length));
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
    header->status = usb_redir_inval;  // there is no such endpoint
    usbredirparser_send_interrupt_packet(self(priv).parser_.get(), id, header, nullptr, 0);
  };
  p->iso_packet_func = [](void* priv, std::uint64_t, usb_redir_iso_packet_header* header, std::uint8_t* data,
                          int length) {
    self(priv).log_->packet("iso", header->endpoint, static_cast<std::size_t>(length));
    usbredirparser_free_packet_data(self(priv).parser_.get(), data);
  };
  p->cancel_data_packet_func = [](void* priv, std::uint64_t id) {
    self(priv).log_->packet("cancel", 0, 0);
    self(priv).cancel(id);
  };
  p->filter_reject_func = [](void* priv) { self(priv).log_->packet("filter_reject", 0, 0); };
  p->filter_filter_func = [](void*, usbredirfilter_rule* rules, int) { usbredirfilter_free(rules); };
  p->device_disconnect_ack_func = [](void*) {};
}

// Requests that are answered with a status, and change little.
void Dongle::set_status_callbacks(usbredirparser* p) {
  p->set_configuration_func = [](void* priv, std::uint64_t id, usb_redir_set_configuration_header* header) {
    Dongle& d = self(priv);
    d.log_->packet("set_configuration", 0, 0);
    const bool known = header->configuration <= 1;
    if (known) d.configuration_ = header->configuration;
    d.send_layout();
    usb_redir_configuration_status_header status{};
    status.status = known ? usb_redir_success : usb_redir_stall;
    status.configuration = d.configuration_;
    usbredirparser_send_configuration_status(d.parser_.get(), id, &status);
  };
  p->get_configuration_func = [](void* priv, std::uint64_t id) {
    Dongle& d = self(priv);
    d.log_->packet("get_configuration", 0, 0);
    usb_redir_configuration_status_header status{};
    status.configuration = d.configuration_;
    usbredirparser_send_configuration_status(d.parser_.get(), id, &status);
  };
  p->set_alt_setting_func = [](void* priv, std::uint64_t id, usb_redir_set_alt_setting_header* header) {
    self(priv).log_->packet("set_alt_setting", 0, 0);
    usb_redir_alt_setting_status_header status{};
    status.status = header->interface <= 1 && header->alt == 0 ? usb_redir_success : usb_redir_stall;
    status.interface = header->interface;
    usbredirparser_send_alt_setting_status(self(priv).parser_.get(), id, &status);
  };
  p->get_alt_setting_func = [](void* priv, std::uint64_t id, usb_redir_get_alt_setting_header* header) {
    self(priv).log_->packet("get_alt_setting", 0, 0);
    usb_redir_alt_setting_status_header status{};
    status.interface = header->interface;
    usbredirparser_send_alt_setting_status(self(priv).parser_.get(), id, &status);
  };
  const auto interrupt_status = [](Dongle& d, std::uint64_t id, std::uint8_t endpoint, const char* type) {
    d.log_->packet(type, endpoint, 0);
    usb_redir_interrupt_receiving_status_header status{};
    status.status = endpoint == kNotifyIn ? usb_redir_success : usb_redir_inval;
    status.endpoint = endpoint;
    usbredirparser_send_interrupt_receiving_status(d.parser_.get(), id, &status);
  };
  static constexpr auto kInterruptStatus = interrupt_status;  // no captures: may be named in the two below
  p->start_interrupt_receiving_func = [](void* priv, std::uint64_t id,
                                         usb_redir_start_interrupt_receiving_header* header) {
    kInterruptStatus(self(priv), id, header->endpoint, "start_interrupt");  // and then it has nothing to notify, ever
  };
  p->stop_interrupt_receiving_func = [](void* priv, std::uint64_t id,
                                        usb_redir_stop_interrupt_receiving_header* header) {
    kInterruptStatus(self(priv), id, header->endpoint, "stop_interrupt");
  };
  // Capabilities or endpoints that the device does not have.
  p->start_iso_stream_func = [](void* priv, std::uint64_t id, usb_redir_start_iso_stream_header* header) {
    usb_redir_iso_stream_status_header status{usb_redir_inval, header->endpoint};
    usbredirparser_send_iso_stream_status(self(priv).parser_.get(), id, &status);
  };
  p->stop_iso_stream_func = [](void* priv, std::uint64_t id, usb_redir_stop_iso_stream_header* header) {
    usb_redir_iso_stream_status_header status{usb_redir_inval, header->endpoint};
    usbredirparser_send_iso_stream_status(self(priv).parser_.get(), id, &status);
  };
  p->alloc_bulk_streams_func = [](void* priv, std::uint64_t id, usb_redir_alloc_bulk_streams_header* header) {
    usb_redir_bulk_streams_status_header status{header->endpoints, 0, usb_redir_inval};
    usbredirparser_send_bulk_streams_status(self(priv).parser_.get(), id, &status);
  };
  p->free_bulk_streams_func = [](void* priv, std::uint64_t id, usb_redir_free_bulk_streams_header* header) {
    usb_redir_bulk_streams_status_header status{header->endpoints, 0, usb_redir_inval};
    usbredirparser_send_bulk_streams_status(self(priv).parser_.get(), id, &status);
  };
  p->start_bulk_receiving_func = [](void*, std::uint64_t, usb_redir_start_bulk_receiving_header*) {};
  p->stop_bulk_receiving_func = [](void*, std::uint64_t, usb_redir_stop_bulk_receiving_header*) {};
}

// The order that usbredirhost uses: what the device is made of, then the device.
void Dongle::announce() {
  send_layout();
  usb_redir_device_connect_header connect{};
  connect.speed = usb_redir_speed_full;
  connect.device_class = 2;  // communications
  connect.vendor_id = options_.vendor;
  connect.product_id = options_.product;
  connect.device_version_bcd = 0x0100;
  usbredirparser_send_device_connect(parser_.get(), &connect);
}

void Dongle::send_layout() {
  usb_redir_ep_info_header endpoints{};
  std::fill(std::begin(endpoints.type), std::end(endpoints.type), std::uint8_t{usb_redir_type_invalid});
  const auto set = [&endpoints](std::uint8_t address, std::uint8_t type, std::uint8_t interface, std::uint8_t interval,
                                std::uint16_t packet_bytes) {
    const std::size_t at = static_cast<std::size_t>(((address & 0x80) >> 3) | (address & 0x0f));
    endpoints.type[at] = type;
    endpoints.interface[at] = interface;
    endpoints.interval[at] = interval;
    endpoints.max_packet_size[at] = packet_bytes;
  };
  set(0x00, usb_redir_type_control, 0, 0, 64);
  set(0x80, usb_redir_type_control, 0, 0, 64);
  set(kNotifyIn, usb_redir_type_interrupt, 0, kNotifyInterval, kNotifyPacketBytes);
  set(kBulkOut, usb_redir_type_bulk, 1, 0, kBulkPacketBytes);
  set(kBulkIn, usb_redir_type_bulk, 1, 0, kBulkPacketBytes);
  usbredirparser_send_ep_info(parser_.get(), &endpoints);
  usb_redir_interface_info_header interfaces{};
  interfaces.interface_count = 2;
  interfaces.interface[1] = 1;
  interfaces.interface_class[0] = 0x02;
  interfaces.interface_subclass[0] = 0x02;
  interfaces.interface_protocol[0] = 0x01;
  interfaces.interface_class[1] = 0x0A;
  usbredirparser_send_interface_info(parser_.get(), &interfaces);
}

void Dongle::reset() {
  line_.clear();
  output_.clear();
  pending_.clear();
  configuration_ = 1;
}

// ---- control ----

constexpr std::uint8_t kStandardGetStatus = 0, kStandardClearFeature = 1, kStandardSetFeature = 3,
                       kStandardGetDescriptor = 6, kStandardGetConfiguration = 8, kStandardGetInterface = 10;
constexpr std::uint8_t kSetLineCoding = 0x20, kGetLineCoding = 0x21, kSetControlLineState = 0x22, kSendBreak = 0x23;

std::vector<std::uint8_t> Dongle::answer_descriptor(std::uint16_t value, std::uint8_t* status) const {
  const unsigned type = value >> 8;
  const unsigned index = value & 0xff;
  if (type == 1) return device_descriptor(options_.vendor, options_.product);
  if (type == 2 && index == 0) return configuration_descriptor();
  if (type == 3 && index == 0) return language_descriptor();
  if (type == 3 && index == 1) return string_descriptor("usblease");
  if (type == 3 && index == 2) return string_descriptor("test dongle");
  if (type == 3 && index == 3) return string_descriptor(options_.serial);
  *status = usb_redir_stall;  // a device qualifier, too: full speed is all it does
  return {};
}

std::vector<std::uint8_t> Dongle::answer_control(const usb_redir_control_packet_header& header,
                                                 std::uint8_t* status) const {
  const bool class_request = (header.requesttype & 0x60) == 0x20;
  if (class_request) {
    switch (header.request) {
      case kGetLineCoding:
        return {0x00, 0xC2, 0x01, 0x00, 0, 0, 8};  // 115200 8N1
      case kSetLineCoding:
      case kSetControlLineState:
      case kSendBreak:
        return {};
      default:
        *status = usb_redir_stall;
        return {};
    }
  }
  switch (header.request) {
    case kStandardGetStatus:
      return {static_cast<std::uint8_t>((header.requesttype & 0x1f) == 0 ? 1 : 0), 0};  // self-powered
    case kStandardClearFeature:
    case kStandardSetFeature:
      return {};
    case kStandardGetDescriptor:
      return answer_descriptor(header.value, status);
    case kStandardGetConfiguration:
      return {configuration_};
    case kStandardGetInterface:
      return {0};
    default:
      *status = usb_redir_stall;
      return {};
  }
}

void Dongle::on_control(std::uint64_t id, usb_redir_control_packet_header header, std::size_t length) {
  log_->packet("control", header.endpoint, length);
  std::uint8_t status = usb_redir_success;
  std::vector<std::uint8_t> data = answer_control(header, &status);
  header.status = status;
  const bool in = (header.endpoint & 0x80) != 0;
  if (in) {
    data.resize(std::min<std::size_t>(data.size(), header.length));
    header.length = static_cast<std::uint16_t>(data.size());
  } else {
    data.clear();
  }
  usbredirparser_send_control_packet(parser_.get(), id, &header, data.data(), static_cast<int>(data.size()));
}

// ---- bulk: the serial line ----

void Dongle::on_bulk(std::uint64_t id, usb_redir_bulk_packet_header header, const std::uint8_t* data,
                     std::size_t length) {
  log_->packet("bulk", header.endpoint, length);
  if (header.endpoint == kBulkIn) {
    pending_.push_back({id, header});
    return complete_reads();
  }
  header.status = header.endpoint == kBulkOut ? usb_redir_success : usb_redir_inval;
  usbredirparser_send_bulk_packet(parser_.get(), id, &header, nullptr, 0);
  if (header.endpoint != kBulkOut) return;
  for (std::size_t i = 0; i < length; ++i) {
    const char c = static_cast<char>(data[i]);
    if (c == '\n') {
      on_line(std::exchange(line_, ""));
    } else if (c != '\r' && line_.size() < kLineMax) {
      line_ += c;
    }
  }
}

// Anything but a ping is ignored: a terminal that echoes sends our answers back to us.
void Dongle::on_line(const std::string& line) {
  const bool plain =
      std::all_of(line.begin(), line.end(), [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; });
  log_->write("line", ",\"text\":\"" + (plain ? line.substr(0, 128) : std::string("?")) + "\"");
  if (line.rfind("ping ", 0) != 0 || !plain) return;
  output_ += "pong " + line.substr(5) + " " + options_.serial + "\n";
  complete_reads();
}

void Dongle::complete_reads() {
  while (!pending_.empty() && !output_.empty()) {
    PendingRead read = pending_.front();
    pending_.pop_front();
    const std::size_t asked = read.header.length | (static_cast<std::size_t>(read.header.length_high) << 16);
    std::string data = output_.substr(0, asked);
    output_.erase(0, data.size());
    read.header.status = usb_redir_success;
    read.header.length = static_cast<std::uint16_t>(data.size() & 0xffff);
    read.header.length_high = static_cast<std::uint16_t>(data.size() >> 16);
    usbredirparser_send_bulk_packet(parser_.get(), read.id, &read.header, reinterpret_cast<std::uint8_t*>(data.data()),
                                    static_cast<int>(data.size()));
    if (asked == 0) return;
  }
}

// One that is unknown was completed already: then there is nothing to say.
void Dongle::cancel(std::uint64_t id) {
  const auto at =
      std::find_if(pending_.begin(), pending_.end(), [id](const PendingRead& read) { return read.id == id; });
  if (at == pending_.end()) return;
  at->header.status = usb_redir_cancelled;
  at->header.length = at->header.length_high = 0;
  usbredirparser_send_bulk_packet(parser_.get(), id, &at->header, nullptr, 0);
  pending_.erase(at);
}

// ---- the stream ----

// Sends what no good server would; kSilent sends nothing.
void Dongle::misbehave() {
  if (options_.misbehaviour == Misbehaviour::kGarbage) {
    constexpr char kGarbage[] = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n";
    (void)send(fd_, kGarbage, sizeof kGarbage - 1, MSG_NOSIGNAL);
  }
  if (options_.misbehaviour == Misbehaviour::kCloseMidPacket) {
    constexpr std::array<std::uint32_t, 5> kHalfOfHello = {usb_redir_hello, 68, 0, 0x75626c75, 0};
    (void)send(fd_, kHalfOfHello.data(), sizeof kHalfOfHello, MSG_NOSIGNAL);
    end_of_stream_ = true;
  }
}

void Dongle::serve() {
  const Misbehaviour how = options_.misbehaviour;
  const bool speaks = how == Misbehaviour::kNone || how == Misbehaviour::kNoDevice || how == Misbehaviour::kNeverClose;
  if (!speaks) misbehave();
  while (!end_of_stream_) {
    if (speaks) (void)usbredirparser_do_write(parser_.get());
    const bool writes = speaks && usbredirparser_has_data_to_write(parser_.get()) > 0;
    pollfd ready{fd_, static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN), 0};
    if (poll(&ready, 1, -1) < 0 && errno != EINTR) break;
    if ((ready.revents & ~POLLOUT) == 0) continue;
    if (speaks) {
      (void)usbredirparser_do_read(parser_.get());
    } else {
      std::array<char, 4096> ignored{};
      if (recv(fd_, ignored.data(), ignored.size(), 0) <= 0) end_of_stream_ = true;
    }
  }
  log_->write("eof");
  if (how == Misbehaviour::kNeverClose) {
    for (;;) pause();
  }
}

// ---- the program ----

Result<UniqueFd> listen_tcp(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return fail(ErrorCode::kBadInput, host + ": " + gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  UniqueFd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  constexpr int kOn = 1;
  if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &kOn, sizeof kOn) != 0 ||
      bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || listen(fd.get(), 8) != 0) {
    return fail_errno("cannot listen on tcp:" + host + ":" + port, errno);
  }
  return fd;
}

Result<UniqueFd> listen_on(const std::string& address) {
  if (address.rfind("unix:", 0) == 0) return listen_unix(address.substr(5), 0600, SOCK_STREAM);
  const auto colon = address.rfind(':');
  if (address.rfind("tcp:", 0) == 0 && colon > 4) {
    return listen_tcp(address.substr(4, colon - 4), address.substr(colon + 1));
  }
  return fail(ErrorCode::kBadInput, "--listen unix:PATH or --listen tcp:HOST:PORT is needed");
}

void say_ready(int listener) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  std::array<char, 32> port{};
  const bool tcp = getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
                   address.ss_family != AF_UNIX &&
                   getnameinfo(reinterpret_cast<sockaddr*>(&address), length, nullptr, 0, port.data(), port.size(),
                               NI_NUMERICSERV) == 0;
  std::printf(tcp ? "ready %s\n" : "ready\n", port.data());
  std::fflush(stdout);
}

bool parse_misbehaviour(const std::string& name, Misbehaviour* out) {
  const std::array<std::pair<const char*, Misbehaviour>, 5> names = {
      {{"garbage", Misbehaviour::kGarbage},
       {"close-mid-packet", Misbehaviour::kCloseMidPacket},
       {"silent", Misbehaviour::kSilent},
       {"no-device", Misbehaviour::kNoDevice},
       {"never-close", Misbehaviour::kNeverClose}}};
  for (const auto& [known, value] : names) {
    if (name == known) return *out = value, true;
  }
  return false;
}

bool parse_options(int argc, char** argv, Options* out) {
  constexpr option kOptions[] = {{"listen", required_argument, nullptr, 'l'},
                                 {"serial", required_argument, nullptr, 's'},
                                 {"vendor", required_argument, nullptr, 'v'},
                                 {"product", required_argument, nullptr, 'p'},
                                 {"log", required_argument, nullptr, 'o'},
                                 {"misbehave", required_argument, nullptr, 'm'},
                                 {nullptr, 0, nullptr, 0}};
  for (int c = 0; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'l':
        out->listen = optarg;
        break;
      case 's':
        out->serial = optarg;
        if (!is_identifier(out->serial)) return false;
        break;
      case 'v':
        out->vendor = static_cast<std::uint16_t>(std::strtoul(optarg, nullptr, 16));
        break;
      case 'p':
        out->product = static_cast<std::uint16_t>(std::strtoul(optarg, nullptr, 16));
        break;
      case 'o':
        out->log = optarg;
        break;
      case 'm':
        if (!parse_misbehaviour(optarg, &out->misbehaviour)) return false;
        break;
      default:
        return false;
    }
  }
  return optind == argc;
}

int run(int argc, char** argv) {
  Options options;
  if (!parse_options(argc, argv, &options)) {
    std::fprintf(stderr, "usage: see the top of tests/devices/usbredir_dongle.cc\n");
    return 2;
  }
  const auto listener = listen_on(options.listen);
  if (!listener) {
    std::fprintf(stderr, "usbredir-dongle: %s\n", listener.error().message.c_str());
    return 1;
  }
  std::signal(SIGPIPE, SIG_IGN);
  Log log(options.log);
  say_ready(listener->get());
  for (;;) {
    pollfd ready{listener->get(), POLLIN, 0};
    (void)poll(&ready, 1, -1);
    const UniqueFd stream(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!stream) continue;
    constexpr int kOn = 1;
    (void)setsockopt(stream.get(), IPPROTO_TCP, TCP_NODELAY, &kOn,
                     sizeof kOn);  // fails on a Unix socket, which has none
    Dongle(stream.get(), options, &log).serve();
    log.write("end");
  }
}

}  // namespace
}  // namespace usblease::dongle

int main(int argc, char** argv) { return usblease::dongle::run(argc, argv); }
