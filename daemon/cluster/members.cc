#include "daemon/cluster/members.h"

#include <glib.h>

#include <algorithm>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::cluster {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{1024} * 1024;
constexpr std::size_t kAddressBytesMax = 300;
constexpr const char* kHostGroup = "host ";

tl::unexpected<Error> bad(const std::string& path, const std::string& group, const std::string& why) {
  return fail(ErrorCode::kBadInput, path + ": [" + escape_text(group) + "]: " + why);
}

bool is_address(const std::string& text) {
  return !text.empty() && text.size() <= kAddressBytesMax && text.find(':') != std::string::npos;
}

Result<Member> read_member(GKeyFile* file, const std::string& group, const std::string& path) {
  Member member;
  member.host_id = group.substr(std::string(kHostGroup).size());
  if (!is_identifier(member.host_id)) return bad(path, group, "this is no host id");
  gsize count = 0;
  GErrorOut error;
  const GStrings addresses(g_key_file_get_string_list(file, group.c_str(), "addresses", &count, error.out()));
  if (addresses == nullptr || count == 0 || count > kAddressesMax)
    return bad(path, group, "addresses= needs 1 to 8 of HOST:PORT");
  for (gsize i = 0; i < count; ++i) {
    const std::string address = addresses.get()[i];
    if (!is_address(address)) return bad(path, group, "\"" + escape_text(address) + "\" is not HOST:PORT");
    member.addresses.push_back(address);
  }
  // An absent key is false, which is what get_boolean gives with its error.
  member.candidate = g_key_file_get_boolean(file, group.c_str(), "candidate", nullptr) != FALSE;
  const GChars url(g_key_file_get_string(file, group.c_str(), "store_url", nullptr));
  if (url != nullptr) member.store_url = url.get();
  if (member.store_url.size() > kAddressBytesMax) return bad(path, group, "store_url= is too long");
  return member;
}

}  // namespace

const Member* Members::find(const std::string& host_id) const {
  const auto found = std::find_if(hosts.begin(), hosts.end(), [&](const Member& m) { return m.host_id == host_id; });
  return found == hosts.end() ? nullptr : &*found;
}

std::vector<std::string> Members::candidates() const {
  std::vector<std::string> out;
  for (const Member& member : hosts) {
    if (member.candidate) out.push_back(member.host_id);
  }
  return out;
}

Result<Members> parse_members(const std::string& text, const std::string& path) {
  if (text.size() > kFileBytesMax) return fail(ErrorCode::kBadInput, path + ": larger than 1 MiB");
  const GPtr<GKeyFile, g_key_file_unref> file(g_key_file_new());
  GErrorOut error;
  if (g_key_file_load_from_data(file.get(), text.c_str(), text.size(), G_KEY_FILE_NONE, error.out()) == FALSE)
    return fail(ErrorCode::kBadInput, path + ": " + escape_text(error.message()));
  Members members;
  const GChars id(g_key_file_get_string(file.get(), "cluster", "id", nullptr));
  if (id == nullptr || !is_identifier(id.get())) return bad(path, "cluster", "id= is absent or no cluster id");
  members.cluster_id = id.get();
  gsize count = 0;
  const GStrings groups(g_key_file_get_groups(file.get(), &count));
  if (count > kMembersMax + 1) return fail(ErrorCode::kBadInput, path + ": more than 1024 hosts");
  for (gsize i = 0; i < count; ++i) {
    const std::string group = groups.get()[i];
    if (group == "cluster") continue;
    if (group.rfind(kHostGroup, 0) != 0) return bad(path, group, "no such group; allowed are cluster and host HOST_ID");
    auto member = read_member(file.get(), group, path);
    if (!member) return tl::unexpected(member.error());
    members.hosts.push_back(std::move(*member));
  }
  if (members.candidates().size() > kCandidatesMax)
    return fail(ErrorCode::kBadInput, path + ": more than 5 hosts with candidate=true");
  return members;
}

Result<std::optional<Members>> load_members(const std::string& path) {
  char* text = nullptr;
  gsize bytes = 0;
  GErrorOut error;
  if (g_file_get_contents(path.c_str(), &text, &bytes, error.out()) == FALSE) {
    if (g_error_matches(error.get(), G_FILE_ERROR, G_FILE_ERROR_NOENT) != FALSE) return std::optional<Members>();
    return fail(ErrorCode::kInternal, error.message());
  }
  const GChars owner(text);
  auto members = parse_members(std::string(text, bytes), path);
  if (!members) return tl::unexpected(members.error());
  return std::optional(std::move(*members));
}

std::string format_members(const Members& members) {
  std::string text = "# Written by usbleased.\n[cluster]\nid=" + members.cluster_id + "\n";
  for (const Member& member : members.hosts) {
    text += "\n[host " + member.host_id + "]\naddresses=";
    for (const std::string& address : member.addresses) text += address + ";";
    text += "\ncandidate=" + std::string(member.candidate ? "true" : "false") + "\n";
    if (!member.store_url.empty()) text += "store_url=" + member.store_url + "\n";
  }
  return text;
}

Result<void> save_members(const std::string& path, const Members& members) {
  const std::string text = format_members(members);
  GErrorOut error;
  const auto flags = static_cast<GFileSetContentsFlags>(G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE);
  if (g_file_set_contents_full(path.c_str(), text.data(), static_cast<gssize>(text.size()), flags, 0600, error.out()) ==
      FALSE)
    return fail(ErrorCode::kInternal, error.message());
  return {};
}

}  // namespace usblease::cluster
