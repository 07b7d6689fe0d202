// One application of one command: inside of the core, not for others. The methods are spread over
// queue.cc (who gets what), lease.cc (how a lease ends), home.cc (what homes and hosts say) and member.cc (who belongs
// to the cluster).
#pragma once

#include <set>
#include <string>

#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"

namespace usblease::lease {

class Step {
 public:
  Step(State& state, const Context& context, const Versions& versions)
      : state_(state), context_(context), versions_(versions) {}

  void run(const command::Command& command);
  Decision finish();

 private:
  // queue.cc
  void acquire(const command::Acquire& c);
  void cancel_request(const command::CancelRequest& c);
  bool answer_repeat(const command::Acquire& c);
  bool answer_held(const command::Acquire& c);
  bool refuse_now(const command::Acquire& c);
  void refuse_unavailable(const command::Acquire& c);
  void shape_reservation(record::Request& request);
  void grant_waiting();
  void grant(const record::Request& request);
  void drop_request(const std::string& id, command::Code code, const std::string& why);
  void drop_requests_of_host(const std::string& host_id, const std::string& boot_id_kept, const std::string& why);
  void drop_requests_against_policy(const record::Device& device);

  // lease.cc
  void release(const command::Release& c);
  void revoke(const command::Revoke& c);
  void extend(const command::Extend& c);
  void grace_over(const command::GraceOver& c);
  void until_over(const command::UntilOver& c);
  void confirm_fenced(const command::ConfirmFenced& c);
  void begin_fencing(record::Device& device, const std::string& reason, const std::string& by,
                     const std::string& kind = "fencing");
  void begin_revoking(record::Device& device, std::uint32_t grace_ms, const std::string& reason, const std::string& by);
  void end_lease(record::Device& device, const std::string& kind, const std::string& how);

  // home.cc
  void register_host(const command::RegisterHost& c);
  void report_device(const command::ReportDevice& c);
  void forget_device(const command::ForgetDevice& c);
  void note_refusals(const command::NoteRefusals& c);
  void host_gone(const command::HostGone& c);
  void declare_dead(const command::DeclareDead& c);
  void new_epoch(const command::NewEpoch& c);
  void supply_floors(const std::string& host_id);
  void learn_floor(const record::Host& host, const command::Floor& floor);
  void adopt_armed(record::Device& device, const std::string& host_id, const command::Floor& floor);
  void note_store_behind(const std::string& host_id, const std::string& device, std::uint64_t floor,
                         std::uint64_t known);
  void end_what_a_reboot_ends(const record::Host& before, const record::Host& now);
  void forget_claims_of(const std::string& host_id, const std::string& boot_id_kept, const std::string& why);
  void fence_leases_of_guests_on(const std::string& host_id, const std::string& boot_id_kept,
                                 const std::string& reason);

  // member.cc
  void found_cluster(const command::FoundCluster& c);
  void add_host(const command::AddHost& c);
  void join(const command::Join& c);
  void update_member(const command::UpdateMember& c);
  void remove_host(const command::RemoveHost& c);
  void rotate_certificates(const command::RotateCertificates& c);
  void note_certificate(const command::NoteCertificate& c);
  void revoke_certificates(record::Member& member, int from, int count);
  void drain_host(const command::DrainHost& c);
  void restore(const command::Restore& c);
  void restore_device(const record::Device& backup);
  void restore_host(const record::Host& backup);
  void finish_leaving();
  void member_event(const std::string& kind, const std::string& host_id, const std::string& principal,
                    const std::string& text);
  bool refuse_stranger(const std::string& host_id);

  // versions.cc
  bool refuse_outdated(const record::Host& host);
  void raise_versions();

  void note_new_instance(record::Device& device, const record::Presence& presence);

  // core.cc
  void refuse(command::Code code, const std::string& message);
  void event(const std::string& kind, const record::Device& device, const std::string& principal,
             const std::string& text);
  void event(const std::string& kind, const record::Request& request, const std::string& text);
  void event(record::Event event);
  void touch(const record::Device& device) { dirty_.insert(device_key(device.name())); }
  void touch(const record::Host& host) { dirty_.insert(host_key(host.id())); }
  void touch(const record::Member& member) { dirty_.insert(member_key(member.host_id())); }
  void touch(const record::JoinToken& token) { dirty_.insert(token_key(token.id())); }
  void touch_meta() { dirty_.insert(kMetaKey); }
  record::Device* find(const std::string& device);
  bool has_lease(const record::Device& device, std::uint64_t token) const;

  State& state_;
  const Context context_;
  const Versions& versions_;
  Decision decision_;
  std::set<std::string> dirty_;
  bool look_for_leavers_ = false;  // a lease has ended, so a host that is to be removed may go
};

// Registered under this boot, and its session has not ended.
const record::Host* live_host(const State& state, const std::string& host_id, const std::string& boot_id);
// The homes that claim the device and are live. Two of them are a conflict.
std::vector<const record::Presence*> claims(const State& state, const record::Device& device);
// Being drained, or about to be removed: it keeps what it has and gets nothing new.
bool takes_no_more(const State& state, const std::string& host_id);
bool is_barred(const record::Host& host, const std::string& boot_id);

bool same_start(const record::Start& a, const record::Start& b);
bool same_instance(const record::Instance& a, const record::Instance& b);
std::uint64_t epoch_of(std::uint64_t token);

}  // namespace usblease::lease
