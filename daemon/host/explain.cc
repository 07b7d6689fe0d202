#include "daemon/host/explain.h"

#include "common/text.h"

namespace usblease::host {
namespace {

std::string explain_one(const command::Obstacle& obstacle) {
  std::string out = "device " + obstacle.device();
  if (obstacle.token() != 0 && !obstacle.guest().empty()) {
    out += " is held by guest " + escape_text(obstacle.guest()) + " on " + obstacle.host() + " (token " +
           std::to_string(obstacle.token()) + ") " +
           (obstacle.until_unix_s() != 0 ? "until " + format_unix_time(obstacle.until_unix_s()) : "with no end set");
  } else if (obstacle.token() != 0) {
    out += " is being fenced (token " + std::to_string(obstacle.token()) + ")";
  } else if (obstacle.ahead() == 0) {
    out += " is not plugged in at any host";
  } else {
    out += " is spoken for";
  }
  if (obstacle.ahead() != 0) out += ", with " + std::to_string(obstacle.ahead()) + " waiting before";
  return out;
}

}  // namespace

std::string explain(const command::Reply& reply, const std::string& guest, Asked asked) {
  const std::string& message = reply.status().message();
  if (reply.obstacles().empty()) return message;
  std::string out;
  for (const auto& obstacle : reply.obstacles()) out += (out.empty() ? "" : "; ") + explain_one(obstacle);
  if (reply.status().code() == command::CODE_TIMED_OUT) return out + "; the wait is over";
  const std::string& device = reply.obstacles(0).device();
  const std::string wait = asked == Asked::kAtStart
                               ? "usblease assign " + escape_text(guest) + " " + device + " --wait 10m"
                               : "usblease attach " + escape_text(guest) + " " + device + " --wait 10m";
  const std::string take =
      reply.obstacles(0).token() != 0 ? "; to take it: usblease revoke " + device + " --reason TEXT" : "";
  return out + "; to wait for it: " + wait + take;
}

std::string explain_lock(const command::Reply& reply) {
  if (reply.obstacles().empty()) return reply.status().message();
  const command::Obstacle& obstacle = reply.obstacles(0);
  std::string out = obstacle.device();
  if (!obstacle.guest().empty()) {
    out += " is held by " + escape_text(obstacle.guest()) + " on " + obstacle.host() + " (token " +
           std::to_string(obstacle.token()) + (obstacle.ending() ? ", which is about to expire)" : ")");
  } else {
    out += obstacle.token() != 0 ? " is held under token " + std::to_string(obstacle.token()) : " is spoken for";
  }
  if (obstacle.ahead() != 0) out += ", with " + std::to_string(obstacle.ahead()) + " waiting before";
  return out + (reply.status().code() == command::CODE_TIMED_OUT ? "; the wait is over" : "; --wait waits for it");
}

}  // namespace usblease::host
