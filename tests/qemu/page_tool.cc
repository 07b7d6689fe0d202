// The daemon's hand on a lease page, for a test: commands on standard input, an answer a line.
//   open PATH | grant TOKEN TTL_US UUID PID | renew TTL_US | bind PID | revoke | remove
// "ok DEADLINE_NS", or "error WHAT". Deadlines are TTL_US from now on CLOCK_BOOTTIME.
#include <iostream>
#include <optional>
#include <sstream>
#include <string>

#include "common/boottime.h"
#include "plugin/lease-page/lease_page_writer.h"

namespace {

using namespace usblease;

std::uint64_t after_us(std::int64_t ttl_us) { return boottime_now_ns() + static_cast<std::uint64_t>(ttl_us * 1000); }

Result<void> grant(lease_page::Writer& page, std::istream& words) {
  lease_page::Grant grant;
  std::int64_t ttl_us = 0;
  std::string uuid;
  words >> grant.token >> ttl_us >> uuid >> grant.pid;
  const auto id = lease_page::id_from_uuid(uuid);
  if (!id) return tl::unexpected(id.error());
  grant.guest = *id;
  grant.start.fill(static_cast<std::uint8_t>(grant.token));
  grant.start[0] = 1;
  grant.deadline_ns = after_us(ttl_us);
  return page.grant(grant);
}

Result<void> obey(std::optional<lease_page::Writer>& page, const std::string& command, std::istream& words) {
  if (command == "open") {
    std::string path;
    words >> path;
    auto opened = lease_page::Writer::open(path);
    if (!opened) return tl::unexpected(opened.error());
    page.emplace(std::move(*opened));
    return {};
  }
  if (!page) return fail(ErrorCode::kBadInput, "open a page first");
  if (command == "grant") return grant(*page, words);
  if (command == "revoke") return page->revoke();
  if (command == "remove") return page->remove();
  std::int64_t number = 0;
  words >> number;
  if (command == "renew") return page->renew(after_us(number));
  if (command == "bind") return page->bind(static_cast<std::uint32_t>(number));
  return fail(ErrorCode::kBadInput, "no such command");
}

}  // namespace

int main() {
  std::optional<lease_page::Writer> page;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    const auto done = obey(page, command, words);
    if (done) {
      std::cout << "ok " << (page ? page->now().deadline_ns : 0) << std::endl;
    } else {
      std::cout << "error " << done.error().message << std::endl;
    }
  }
  return 0;
}
