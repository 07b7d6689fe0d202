#include "daemon/cluster/peer_rules.h"

#include "common/text.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

using Refusal = std::optional<std::string>;

Refusal of_itself(const std::string& host_id, const std::string& named, const char* what) {
  if (named == host_id) return std::nullopt;
  return "host " + host_id + " may not " + what + " for host \"" + escape_text(named.substr(0, 64)) + "\"";
}

// "root" becomes "root@host1"; nobody stays nobody.
Refusal own_principal(const std::string& host_id, std::string* principal) {
  if (principal->empty()) return std::nullopt;
  const auto at = principal->rfind('@');
  if (at == std::string::npos) {
    *principal += "@" + host_id;
    return std::nullopt;
  }
  return of_itself(host_id, principal->substr(at + 1), "speak");
}

Refusal own_request(const std::string& host_id, const lease::State* state, const std::string& request_id) {
  if (state == nullptr) return std::nullopt;
  const auto found = state->requests.find(request_id);
  if (found == state->requests.end()) return std::nullopt;  // nothing is cancelled then
  return of_itself(host_id, found->second.start().host_id(), "cancel a request");
}

}  // namespace

Refusal restrict_command(const std::string& host_id, const lease::State* state, command::Command& c) {
  using Body = command::Command::BodyCase;
  const auto both = [&](Refusal first, std::string* principal) {
    return first ? std::move(first) : own_principal(host_id, principal);
  };
  switch (c.body_case()) {
    case Body::kRegisterHost:
      return of_itself(host_id, c.register_host().host().id(), "register");
    case Body::kReportDevice:
      return of_itself(host_id, c.report_device().presence().instance().host_id(), "report a device");
    case Body::kForgetDevice:
      return of_itself(host_id, c.forget_device().host_id(), "forget a device");
    case Body::kAcquire:
      return both(of_itself(host_id, c.acquire().start().host_id(), "acquire"),
                  c.mutable_acquire()->mutable_principal());
    case Body::kCancelRequest:
      return own_request(host_id, state, c.cancel_request().request_id());
    case Body::kRelease:
      return both(of_itself(host_id, c.release().start().host_id(), "release"),
                  c.mutable_release()->mutable_principal());
    case Body::kConfirmFenced:
      return of_itself(host_id, c.confirm_fenced().instance().host_id(), "confirm a fence");
    case Body::kNoteRefusals:
      return of_itself(host_id, c.note_refusals().host_id(), "note refusals");
    // What a person wants, whose host has seen to it that he may.
    case Body::kRevoke:
      return own_principal(host_id, c.mutable_revoke()->mutable_principal());
    case Body::kExtend:
      return own_principal(host_id, c.mutable_extend()->mutable_principal());
    case Body::kDeclareDead:
      return own_principal(host_id, c.mutable_declare_dead()->mutable_principal());
    case Body::kNewEpoch:
      return own_principal(host_id, c.mutable_new_epoch()->mutable_principal());
    case Body::kUpdateMember:
      return of_itself(host_id, c.update_member().host_id(), "change the addresses");
    case Body::kNoteCertificate:
      if (!c.note_certificate().in_use()) return "only the coordinator itself decides this";
      return of_itself(host_id, c.note_certificate().host_id(), "note a certificate");
    // A person's requests, which hosts pass on as they are, and joins, which come without a certificate.
    case Body::kFoundCluster:
    case Body::kAddHost:
    case Body::kJoin:
    case Body::kRemoveHost:
    case Body::kDrainHost:
    case Body::kRestore:
    case Body::kRotateCertificates:
    case Body::kGraceOver:
    case Body::kUntilOver:
    case Body::kHostGone:
      return "only the coordinator itself decides this";
    case Body::BODY_NOT_SET:
      return "this version does not know that command; the coordinator runs an older usblease";
  }
  return "this version does not know that command";
}

Refusal restrict_renewal(const std::string& host_id, const peer::Renewal& renewal) {
  if (renewal.armed_size() > static_cast<int>(lease::kDevicesPerMessageMax))
    return "a renewal names more than 4096 leases";
  return of_itself(host_id, renewal.host_id(), "renew");
}

Refusal restrict_forward(const peer::Forward& forward) {
  const std::string& caller = forward.caller();
  if (caller.empty() || caller.size() > 64 || caller.find('@') != std::string::npos)
    return "the caller of a forwarded request is not well formed";
  return std::nullopt;
}

}  // namespace usblease::cluster
