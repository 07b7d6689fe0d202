// Makes clusters' CAs and hosts' identities for the tests of tests/unit/cluster.
#pragma once

#include <string>
#include <vector>

#include "common/boottime.h"
#include "daemon/cluster/identity.h"
#include "tests/unit/common/check_run.h"

namespace usblease::test {

class Kit {
 public:
  explicit Kit(std::string cluster_id = "c1") : cluster_id_(std::move(cluster_id)) {
    auto authority = cluster::make_authority(cluster_id_);
    ck_assert_ok(authority);
    authority_ = std::move(*authority);
  }

  // Signed by this CA; `cluster_id` empty: this one. Not checked: it may be expired or of another cluster.
  [[nodiscard]] cluster::Identity unchecked(const std::string& host_id, const std::string& cluster_id = "",
                                            const cluster::Validity& validity = cluster::valid_from_now(3'600)) const {
    const auto request = cluster::make_host_request(host_id);
    ck_assert_ok(request);
    const std::string& named = cluster_id.empty() ? cluster_id_ : cluster_id;
    const auto certificate =
        cluster::sign_host_request(authority_, request->request, {named, host_id, {"127.0.0.1", "::1"}}, validity);
    ck_assert_ok(certificate);
    return {named, host_id, authority_.certificate, *certificate, request->key, validity};
  }

  [[nodiscard]] cluster::Identity host(const std::string& host_id) const {
    const cluster::Identity made = unchecked(host_id);
    auto identity = cluster::make_identity(made.authorities, made.certificate, made.key);
    ck_assert_ok(identity);
    return std::move(*identity);
  }

  [[nodiscard]] const cluster::Authority& authority() const { return authority_; }

 private:
  std::string cluster_id_;
  cluster::Authority authority_;
};

}  // namespace usblease::test
