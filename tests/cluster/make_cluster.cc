// make-cluster CLUSTER_ID HOST=ADDRESS=DIRECTORY…: what every host of a cluster has in STATE_DIR/cluster, without
// `cluster init` and `join`. A HOST that begins with '+' is a candidate, with a store member on ports 7472 and 7473.
//
// make-cluster --stranger CLUSTER_ID HOST=ADDRESS=DIRECTORY: an identity of the same names, by another CA.
//
// make-cluster --by CA_DIRECTORY END_UNIX_S CLUSTER_ID HOST=ADDRESS=DIRECTORY: by the CA whose ca.pem and ca.key are
// there, until then; also what no host would use: one that has ended, or of another cluster.
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "daemon/cluster/identity.h"
#include "daemon/cluster/members.h"

namespace usblease::cluster_test {
namespace {

struct Host {
  cluster::Member member;
  std::string address;
  std::string directory;
};

bool parse(const std::string& word, Host& host) {
  const auto first = word.find('=');
  const auto second = word.find('=', first + 1);
  if (first == std::string::npos || second == std::string::npos) return false;
  host.member.candidate = word[0] == '+';
  host.member.host_id = word.substr(host.member.candidate ? 1 : 0, first - (host.member.candidate ? 1 : 0));
  host.address = word.substr(first + 1, second - first - 1);
  host.directory = word.substr(second + 1);
  host.member.addresses = {host.address + ":7471"};
  if (host.member.candidate) host.member.store_url = "https://" + host.address + ":7472";
  return true;
}

Result<void> make_host(const cluster::Authority& authority, const std::string& cluster_id, const Host& host) {
  const auto request = cluster::make_host_request(host.member.host_id);
  if (!request) return tl::unexpected(request.error());
  const auto certificate =
      cluster::sign_host_request(authority, request->request, {cluster_id, host.member.host_id, {host.address}});
  if (!certificate) return tl::unexpected(certificate.error());
  const auto identity = cluster::make_identity(authority.certificate, *certificate, request->key);
  if (!identity) return tl::unexpected(identity.error());
  std::filesystem::create_directories(host.directory);
  return cluster::save_identity(host.directory, *identity);
}

int sign_by(const std::vector<std::string>& words) {
  Host host;
  if (words.size() != 5 || !parse(words[4], host)) return 2;
  const auto ca = cluster::read_small_file(words[1], cluster::kAuthoritiesFile);
  const auto ca_key = cluster::read_small_file(words[1], cluster::kAuthorityKeyFile);
  const auto request = cluster::make_host_request(host.member.host_id);
  if (!ca || !ca_key || !request) return 2;
  const std::uint64_t end_unix_s = std::stoull(words[2]);
  const auto certificate =
      cluster::sign_host_request({*ca, *ca_key}, request->request, {words[3], host.member.host_id, {host.address}},
                                 {end_unix_s - 86'400, end_unix_s});
  std::filesystem::create_directories(host.directory);
  Result<void> made = certificate ? Result<void>() : tl::unexpected(certificate.error());
  if (made) made = cluster::write_durably(host.directory, cluster::kAuthoritiesFile, *ca, 0644);
  if (made) made = cluster::write_durably(host.directory, cluster::kCertificateFile, *certificate, 0644);
  if (made) made = cluster::write_durably(host.directory, cluster::kKeyFile, request->key, 0600);
  if (!made) std::cerr << "make-cluster: " << made.error().message << '\n';
  return made ? 0 : 1;
}

int run(const std::vector<std::string>& words) {
  if (!words.empty() && words[0] == "--by") return sign_by(words);
  const bool stranger = words.size() > 1 && words[0] == "--stranger";
  const std::size_t first = stranger ? 1 : 0;
  cluster::Members members;
  std::vector<Host> hosts;
  if (words.size() > first) members.cluster_id = words[first];
  for (std::size_t i = first + 1; i < words.size(); ++i) {
    if (!parse(words[i], hosts.emplace_back())) return 2;
    members.hosts.push_back(hosts.back().member);
  }
  const auto authority = cluster::make_authority(members.cluster_id);
  if (!authority || hosts.empty()) return 2;
  for (const Host& host : hosts) {
    auto made = make_host(*authority, members.cluster_id, host);
    if (made && !stranger) made = cluster::save_members(host.directory + "/members", members);
    if (made) continue;
    std::cerr << "make-cluster: " << made.error().message << '\n';
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace usblease::cluster_test

int main(int argc, char** argv) { return usblease::cluster_test::run({argv + 1, argv + argc}); }
