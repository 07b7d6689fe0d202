#include "cli/views.h"

#include "cli/table.h"
#include "common/text.h"

namespace usblease::cli {

std::string home_names(const record::Device& device) {
  std::string out;
  for (const auto& home : device.homes()) {
    if (home.present()) out += (out.empty() ? "" : ", ") + home.instance().host_id();
  }
  return out;
}

std::string duration_or(std::uint64_t seconds, const std::string& zero) {
  return seconds == 0 ? zero : format_duration(seconds);
}

std::string format_ms(std::uint64_t milliseconds) {
  if (milliseconds % 1000 == 0) return format_duration(milliseconds / 1000);
  if (milliseconds >= 60'000) return format_duration(milliseconds / 1000);
  const std::uint64_t tenths = milliseconds % 1000 / 100;
  if (tenths == 0 && milliseconds < 1000) return std::to_string(milliseconds) + "ms";
  return std::to_string(milliseconds / 1000) + "." + std::to_string(tenths) + "s";
}

std::string format_queue(const google::protobuf::RepeatedPtrField<record::Request>& queue, bool with_header) {
  Table table({"Place", "Guest", "Host", "Priority", "Devices", "Since", "Waits for", "Asked by"});
  std::size_t place = 0;
  for (const auto& request : queue) {
    std::string devices;
    for (const auto& name : request.devices()) devices += (devices.empty() ? "" : ",") + name;
    table.add({std::to_string(++place), request.guest_name() + (request.reservation() ? " (migration)" : ""),
               request.start().host_id(), std::to_string(request.priority()), devices,
               format_unix_time(request.queued_unix_s()), format_ms(request.wait_ms()), request.principal()});
  }
  return table.format(with_header);
}

}  // namespace usblease::cli
