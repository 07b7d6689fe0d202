// libusb-1.0 with one memory stick in it, for QEMU's usb-host, on machines without USB. QEMU finds it by
// LD_LIBRARY_PATH. What reaches the stick is counted by a Witness; libusb's own promises are kept: callbacks come only
// from libusb_handle_events, a closed handle's transfers never complete.
//
// Environment: MOCK_WITNESS  file of the Witness         MOCK_PAGE  lease page that it looks at
//              MOCK_BUS, MOCK_ADDRESS  where the stick is (1, 4)
//              MOCK_HOLD     a number: after so many packets the stick leaves bulk reads unanswered
//              MOCK_STUCK    cancelling such a read does not end it either
#include <libusb-1.0/libusb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>

#include "tests/qemu/stick.h"
#include "tests/qemu/witness.h"

struct libusb_context {};
struct libusb_device {};
struct libusb_device_handle {};

namespace {

using usblease::test::Stick;
using usblease::test::Witness;

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::string text_from_environment(const char* name) {
  const char* const text = std::getenv(name);
  return text != nullptr ? text : "";
}

struct Bus {
  libusb_context context;
  libusb_device device;
  libusb_device_handle handle;
  Stick stick;
  Witness witness{text_from_environment("MOCK_WITNESS"), text_from_environment("MOCK_PAGE")};
  std::uint64_t number = number_from_environment("MOCK_BUS", 1);
  std::uint64_t address = number_from_environment("MOCK_ADDRESS", 4);
  std::uint64_t hold_after = number_from_environment("MOCK_HOLD", UINT64_MAX);
  bool stuck = std::getenv("MOCK_STUCK") != nullptr;
  int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  std::deque<libusb_transfer*> done;
  std::deque<libusb_transfer*> held;
};

Bus& bus() {
  static Bus the_bus;
  return the_bus;
}

void complete(libusb_transfer* transfer, libusb_transfer_status status, int length) {
  transfer->status = status;
  transfer->actual_length = length;
  bus().done.push_back(transfer);
  const std::uint64_t one = 1;
  if (write(bus().wake, &one, sizeof one) < 0) std::abort();
}

void answer_control(libusb_transfer* transfer) {
  const std::uint8_t* const setup = transfer->buffer;
  const auto value = static_cast<std::uint16_t>(setup[2] | setup[3] << 8);
  const auto length = static_cast<std::uint16_t>(setup[6] | setup[7] << 8);
  const auto answer = Stick::control(setup[0], setup[1], value, length);
  if (!answer) return complete(transfer, LIBUSB_TRANSFER_STALL, 0);
  std::copy(answer->begin(), answer->end(), transfer->buffer + LIBUSB_CONTROL_SETUP_SIZE);
  complete(transfer, LIBUSB_TRANSFER_COMPLETED, static_cast<int>(answer->size()));
}

void answer_bulk(libusb_transfer* transfer) {
  const auto length = static_cast<std::size_t>(transfer->length);
  if ((transfer->endpoint & LIBUSB_ENDPOINT_IN) == 0) {
    bus().stick.bulk_out({transfer->buffer, length});
    return complete(transfer, LIBUSB_TRANSFER_COMPLETED, transfer->length);
  }
  if (bus().witness.seen->packets > bus().hold_after) {
    bus().held.push_back(transfer);
    return;
  }
  const auto answer = bus().stick.bulk_in(length);
  std::copy(answer.begin(), answer.end(), transfer->buffer);
  complete(transfer, LIBUSB_TRANSFER_COMPLETED, static_cast<int>(answer.size()));
}

const libusb_endpoint_descriptor endpoints[] = {
    {7, LIBUSB_DT_ENDPOINT, usblease::test::kStickIn, LIBUSB_TRANSFER_TYPE_BULK, 512, 0, 0, 0, nullptr, 0},
    {7, LIBUSB_DT_ENDPOINT, usblease::test::kStickOut, LIBUSB_TRANSFER_TYPE_BULK, 512, 0, 0, 0, nullptr, 0},
};
const libusb_interface_descriptor alternate = {9, LIBUSB_DT_INTERFACE, 0, 0, 2, 8, 6, 0x50, 0, endpoints, nullptr, 0};
const libusb_interface interfaces = {&alternate, 1};
libusb_config_descriptor configuration = {9, LIBUSB_DT_CONFIG, 32, 1, 1, 0, 0x80, 50, &interfaces, nullptr, 0};

}  // namespace

extern "C" {

int libusb_init(libusb_context** context) {
  *context = &bus().context;
  return 0;
}
int libusb_set_option(libusb_context*, libusb_option, ...) { return 0; }
void libusb_set_pollfd_notifiers(libusb_context*, libusb_pollfd_added_cb, libusb_pollfd_removed_cb, void*) {}
const libusb_pollfd** libusb_get_pollfds(libusb_context*) {
  static const libusb_pollfd pollfd{bus().wake, POLLIN};
  auto** list = static_cast<const libusb_pollfd**>(std::calloc(2, sizeof(libusb_pollfd*)));  // QEMU frees it
  list[0] = &pollfd;
  return list;
}

ssize_t libusb_get_device_list(libusb_context*, libusb_device*** list) {
  *list = static_cast<libusb_device**>(std::calloc(2, sizeof(libusb_device*)));
  (*list)[0] = &bus().device;
  return 1;
}
void libusb_free_device_list(libusb_device** list, int) { std::free(list); }
libusb_device* libusb_ref_device(libusb_device* device) { return device; }
void libusb_unref_device(libusb_device*) {}
libusb_device* libusb_get_device(libusb_device_handle*) { return &bus().device; }
std::uint8_t libusb_get_bus_number(libusb_device*) { return static_cast<std::uint8_t>(bus().number); }
std::uint8_t libusb_get_device_address(libusb_device*) { return static_cast<std::uint8_t>(bus().address); }
int libusb_get_port_numbers(libusb_device*, std::uint8_t* ports, int) {
  ports[0] = 1;
  return 1;
}
int libusb_get_device_speed(libusb_device*) { return LIBUSB_SPEED_HIGH; }
int libusb_get_device_descriptor(libusb_device*, libusb_device_descriptor* descriptor) {
  std::memcpy(descriptor, usblease::test::kStickDevice.data(), sizeof *descriptor);
  return 0;
}
int libusb_get_active_config_descriptor(libusb_device*, libusb_config_descriptor** out) {
  *out = &configuration;
  return 0;
}
int libusb_get_config_descriptor(libusb_device*, std::uint8_t index, libusb_config_descriptor** out) {
  if (index != 0) return LIBUSB_ERROR_NOT_FOUND;
  *out = &configuration;
  return 0;
}
void libusb_free_config_descriptor(libusb_config_descriptor*) {}
int libusb_get_ss_endpoint_companion_descriptor(libusb_context*, const libusb_endpoint_descriptor*,
                                                libusb_ss_endpoint_companion_descriptor**) {
  return LIBUSB_ERROR_NOT_FOUND;
}
void libusb_free_ss_endpoint_companion_descriptor(libusb_ss_endpoint_companion_descriptor*) {}
int libusb_get_string_descriptor_ascii(libusb_device_handle*, std::uint8_t, unsigned char*, int) {
  return LIBUSB_ERROR_NOT_FOUND;
}

int libusb_open(libusb_device*, libusb_device_handle** handle) {
  *handle = &bus().handle;
  ++bus().witness.seen->opens;
  return 0;
}
int libusb_wrap_sys_device(libusb_context*, intptr_t, libusb_device_handle** handle) {
  return libusb_open(&bus().device, handle);
}
void libusb_close(libusb_device_handle*) {
  bus().held.clear();
  bus().done.clear();
  ++bus().witness.seen->closes;
  bus().witness.seen->last_close_ns = usblease::boottime_now_ns();
}

int libusb_kernel_driver_active(libusb_device_handle*, int) { return 0; }
int libusb_detach_kernel_driver(libusb_device_handle*, int) { return 0; }
int libusb_attach_kernel_driver(libusb_device_handle*, int) {
  ++bus().witness.seen->drivers_attached;
  return 0;
}
int libusb_claim_interface(libusb_device_handle*, int number) { return number == 0 ? 0 : LIBUSB_ERROR_NOT_FOUND; }
int libusb_release_interface(libusb_device_handle*, int) { return 0; }

// Requests of the standard kind reach the device as packets.
int libusb_set_configuration(libusb_device_handle*, int) {
  bus().witness.packet();
  return 0;
}
int libusb_set_interface_alt_setting(libusb_device_handle*, int, int) {
  bus().witness.packet();
  return 0;
}
int libusb_clear_halt(libusb_device_handle*, unsigned char) {
  bus().witness.packet();
  return 0;
}
int libusb_reset_device(libusb_device_handle*) {
  ++bus().witness.seen->resets;
  bus().witness.packet();
  return 0;
}
int libusb_alloc_streams(libusb_device_handle*, std::uint32_t, unsigned char*, int) {
  return LIBUSB_ERROR_NOT_SUPPORTED;
}
int libusb_free_streams(libusb_device_handle*, unsigned char*, int) { return 0; }
void libusb_transfer_set_stream_id(libusb_transfer*, std::uint32_t) {}

libusb_transfer* libusb_alloc_transfer(int packets) {
  const auto more = static_cast<std::size_t>(packets) * sizeof(libusb_iso_packet_descriptor);
  return static_cast<libusb_transfer*>(std::calloc(1, sizeof(libusb_transfer) + more));
}
void libusb_free_transfer(libusb_transfer* transfer) { std::free(transfer); }

int libusb_submit_transfer(libusb_transfer* transfer) {
  bus().witness.packet();
  if (transfer->type == LIBUSB_TRANSFER_TYPE_CONTROL) {
    answer_control(transfer);
  } else {
    answer_bulk(transfer);
  }
  return 0;
}

int libusb_cancel_transfer(libusb_transfer* transfer) {
  auto& held = bus().held;
  const auto found = std::find(held.begin(), held.end(), transfer);
  if (found == held.end()) return LIBUSB_ERROR_NOT_FOUND;
  if (bus().stuck) return 0;
  held.erase(found);
  complete(transfer, LIBUSB_TRANSFER_CANCELLED, 0);
  return 0;
}

int libusb_handle_events_timeout(libusb_context*, timeval* timeout) {
  pollfd waiting{bus().wake, POLLIN, 0};
  poll(&waiting, 1, static_cast<int>(timeout->tv_sec * 1000 + (timeout->tv_usec + 999) / 1000));
  std::uint64_t count = 0;
  if (read(bus().wake, &count, sizeof count) < 0) return 0;  // nothing is due
  for (std::size_t due = bus().done.size(); due > 0 && !bus().done.empty(); --due) {
    libusb_transfer* const transfer = bus().done.front();
    bus().done.pop_front();
    transfer->callback(transfer);
  }
  return 0;
}

}  // extern "C"
