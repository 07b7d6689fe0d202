#include "daemon/api/credentials.h"

#include <grp.h>
#include <pwd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <vector>

#include "common/text.h"

namespace usblease::api {
namespace {

constexpr std::size_t kNssBufferMax = std::size_t{1024} * 1024;  // a group with very many members
constexpr std::size_t kGroupsMax = 65'536;                       // NGROUPS_MAX

// Calls one of the get…_r functions with a buffer that is large enough. nullopt: no such entry, or no answer.
template <typename Entry, typename Lookup>
std::optional<Entry> look_up(std::vector<char>& buffer, Lookup lookup) {
  buffer.resize(4096);
  for (;;) {
    Entry entry{};
    Entry* found = nullptr;
    const int error = lookup(&entry, buffer.data(), buffer.size(), &found);
    if (error == 0) return found != nullptr ? std::optional(entry) : std::nullopt;
    if (error == ERANGE && buffer.size() < kNssBufferMax) {
      buffer.resize(buffer.size() * 4);
    } else if (error != EINTR) {
      return std::nullopt;
    }
  }
}

std::optional<gid_t> group_id(const std::string& name) {
  if (name.empty()) return std::nullopt;
  std::vector<char> buffer;
  const auto entry = look_up<group>(buffer, [&](group* out, char* data, std::size_t size, group** found) {
    return getgrnam_r(name.c_str(), out, data, size, found);
  });
  return entry ? std::optional(entry->gr_gid) : std::nullopt;
}

bool process_has(int fd, gid_t wanted) {
  std::vector<gid_t> groups(64);
  for (;;) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0) {
      groups.resize(bytes / sizeof(gid_t));
      return std::find(groups.begin(), groups.end(), wanted) != groups.end();
    }
    // ERANGE: `bytes` is what is needed.
    const std::size_t needed = bytes / sizeof(gid_t);
    if (errno != ERANGE || needed <= groups.size() || needed > kGroupsMax) return false;
    groups.resize(needed);
  }
}

bool user_has(uid_t uid, gid_t wanted) {
  std::vector<char> buffer;
  const auto user = look_up<passwd>(buffer, [&](passwd* out, char* data, std::size_t size, passwd** found) {
    return getpwuid_r(uid, out, data, size, found);
  });
  if (!user) return false;
  std::vector<gid_t> groups(64);
  for (;;) {
    int count = static_cast<int>(groups.size());
    if (getgrouplist(user->pw_name, user->pw_gid, groups.data(), &count) >= 0) {
      groups.resize(static_cast<std::size_t>(count));
      return std::find(groups.begin(), groups.end(), wanted) != groups.end();
    }
    const auto needed = static_cast<std::size_t>(count);
    if (needed <= groups.size() || needed > kGroupsMax) return false;
    groups.resize(needed);
  }
}

}  // namespace

Caller identify(int fd, const PeerCredentials& credentials, const AccessRules& rules) {
  Caller caller;
  caller.uid = credentials.uid;
  caller.pid = credentials.pid;
  caller.name = credentials.uid == 0 ? "root" : std::to_string(credentials.uid);
  if (credentials.uid == 0) {
    caller.may_act = true;
  } else if (const auto wanted = group_id(rules.act_group)) {
    // The user database last: it may be a server far away.
    caller.may_act = credentials.gid == *wanted || process_has(fd, *wanted) || user_has(credentials.uid, *wanted);
  }
  caller.may_read = caller.may_act || rules.everyone_reads;
  return caller;
}

std::string denial(const Caller& caller, const AccessRules& rules) {
  const std::string who = "user " + caller.name + " may not use usbleased";
  if (rules.act_group.empty()) return who + ": only root may; see [access] in usbleased.conf";
  const std::string group = escape_text(rules.act_group);
  return who + ": only root and members of the group \"" + group + "\" may; as root, run `usermod -aG " + group +
         " USER` and connect again";
}

}  // namespace usblease::api
