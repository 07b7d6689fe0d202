#include "tests/bench/fake_host.h"

#include <utility>

#include "common/boottime.h"
#include "common/glib_ptr.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/join_token.h"
#include "join.pb.h"

namespace usblease::bench {
namespace {

constexpr std::uint32_t kJoinMs = 30'000;
constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kAgainNs = 200 * kNsPerMs;
constexpr int kDevicesPerRequest = 16;
constexpr const char* kGuestUuid = "6f9619ff-8b86-4d01-b42d-00cf4fc964f1";
constexpr const char* kNonce = "00112233445566bb";

std::string new_uuid() {
  const GChars text(g_uuid_string_random());
  return text.get();
}

}  // namespace

FakeHost::FakeHost(std::string host_id, int leases, std::uint32_t renewal_ms, FakeHostStats& stats)
    : host_id_(std::move(host_id)),
      boot_id_(new_uuid()),
      leases_(leases),
      renewal_ns_(renewal_ms * kNsPerMs),
      stats_(stats) {}

std::string FakeHost::device(int number) const { return host_id_ + "-" + std::to_string(number); }

void FakeHost::fail_with(const std::string& why) {
  if (done_) std::exchange(done_, nullptr)(fail(ErrorCode::kInternal, host_id_ + ": " + why));
}

// --- Joining ---------------------------------------------------------------------------------------------

void FakeHost::start(const std::string& token, cluster::Peer coordinator, Done done) {
  coordinator_ = std::move(coordinator);
  done_ = std::move(done);
  const auto decoded = cluster::decode_join_token(token);
  const auto wanted = cluster::make_host_request(host_id_);
  if (!decoded || !wanted) return fail_with("no usable join token or key");
  key_ = wanted->key;
  join::JoinRequest request;
  request.set_secret(decoded->secret);
  request.set_host_id(host_id_);
  request.set_certificate_request(wanted->request);
  request.add_addresses("127.0.0.1:1");  // nobody dials a host that cannot stand
  join_ = std::make_unique<cluster::JoinClient>(*decoded, request.SerializeAsString(), kJoinMs,
                                                [this](const auto& answer) { joined(answer); });
}

void FakeHost::joined(const Result<cluster::JoinAnswer>& answer) {
  if (!answer) return fail_with(answer.error().message);
  join::JoinReply reply;
  if (!reply.ParseFromString(answer->payload) || reply.status().code() != command::CODE_OK)
    return fail_with("the join was refused: " + reply.status().message());
  const auto identity = cluster::make_identity(reply.authorities(), reply.certificate(), key_);
  if (!identity) return fail_with(identity.error().message);
  cluster::TransportEvents events;
  events.up = [this](const std::string& /*the coordinator*/) { connected(); };
  events.down = [this](const std::string& /*the coordinator*/, cluster::DownReason, const std::string& why) {
    ++stats_.refused;
    fail_with(why);
  };
  events.answer = [this](const std::string& /*the coordinator*/, const std::string& payload) { answered(payload); };
  events.accepted = [](cluster::AcceptedId, const std::string&) {};
  events.request = [](cluster::AcceptedId, const std::string&) {};
  events.gone = [](cluster::AcceptedId) {};
  events.join = [](const std::string&, const std::function<void(std::string)>&) {};
  cluster::TlsTransportOptions options;
  options.listen = "127.0.0.1:0";
  auto opened = cluster::TlsTransport::open(*identity, options, std::move(events));
  if (!opened) return fail_with(opened.error().message);
  transport_ = std::move(*opened);
  transport_->set_peers({coordinator_});
}

// --- What it has -----------------------------------------------------------------------------------------

void FakeHost::connected() {
  if (!done_) return;  // again
  peer::PeerRequest subscribe;
  subscribe.mutable_subscribe();
  steps_ = {subscribe, registration()};
  for (int number = 0; number < leases_; ++number) steps_.push_back(report(number));
  for (int first = 0; first < leases_; first += kDevicesPerRequest) steps_.push_back(acquisition(first));
  renew_later();
  next_step();
}

void FakeHost::next_step() {
  if (steps_.empty()) {
    if (static_cast<int>(armed_.size()) != leases_) return fail_with("not every lease was granted");
    if (done_) std::exchange(done_, nullptr)({});
    return;
  }
  send(steps_.front(), [this](const peer::PeerAnswer& answer) {
    const command::Status& status = answer.has_reply() ? answer.reply().status() : answer.failed();
    // A coordinator on a slow disk may be none for a moment. Every command is idempotent.
    if (answer.has_not_coordinator() || status.code() == command::CODE_UNAVAILABLE) {
      again_ = run_after(kAgainNs, [this] { next_step(); });
      return;
    }
    if (status.code() != command::CODE_OK) return fail_with(status.message());
    steps_.pop_front();
    for (const command::Grant& grant : answer.reply().grants()) {
      peer::Armed armed;
      armed.set_device(grant.device());
      armed.set_token(grant.token());
      armed_.push_back(std::move(armed));
    }
    next_step();
  });
}

peer::PeerRequest FakeHost::registration() const {
  peer::PeerRequest request;
  command::RegisterHost& registering = *request.mutable_command()->mutable_register_host();
  registering.set_has_floors(true);
  registering.mutable_host()->set_id(host_id_);
  registering.mutable_host()->set_name(host_id_);
  registering.mutable_host()->set_boot_id(boot_id_);
  registering.mutable_host()->set_machine_uuid(boot_id_);
  registering.mutable_host()->add_rungs(record::RUNG_RELAY);
  return request;
}

peer::PeerRequest FakeHost::report(int number) const {
  peer::PeerRequest request;
  command::ReportDevice& reporting = *request.mutable_command()->mutable_report_device();
  reporting.set_device(device(number));
  record::Presence& presence = *reporting.mutable_presence();
  presence.set_present(true);
  presence.mutable_instance()->set_host_id(host_id_);
  presence.mutable_instance()->set_boot_id(boot_id_);
  presence.mutable_instance()->set_counter(1);
  presence.mutable_identity()->set_kind(record::DEVICE_KIND_ENDPOINT);
  presence.mutable_identity()->set_address("unix:/run/devices/" + device(number));
  return request;
}

peer::PeerRequest FakeHost::acquisition(int first) const {
  peer::PeerRequest request;
  command::Acquire& acquiring = *request.mutable_command()->mutable_acquire();
  acquiring.set_request_id(host_id_ + "-" + std::to_string(first));
  acquiring.mutable_start()->set_guest_uuid(kGuestUuid);
  acquiring.mutable_start()->set_nonce(kNonce);
  acquiring.mutable_start()->set_host_id(host_id_);
  acquiring.mutable_start()->set_boot_id(boot_id_);
  acquiring.set_guest_name("bench");
  acquiring.set_principal("root");
  for (int number = first; number < std::min(first + kDevicesPerRequest, leases_); ++number)
    acquiring.add_devices(device(number));
  return request;
}

// --- Renewals --------------------------------------------------------------------------------------------

void FakeHost::renew_later() {
  next_renewal_ = run_after(renewal_ns_, [this] { renew(); });
}

void FakeHost::renew() {
  renew_later();
  peer::PeerRequest request;
  peer::Renewal& renewal = *request.mutable_renewal();
  renewal.set_host_id(host_id_);
  renewal.set_boot_id(boot_id_);
  renewal.set_machine_uuid(boot_id_);
  renewal.set_seq(++seq_);
  for (const peer::Armed& armed : armed_) *renewal.add_armed() = armed;
  send(std::move(request),
       [this, sent_ns = boottime_now_ns(), named = renewal.armed_size()](const peer::PeerAnswer& answer) {
         if (!answer.has_renewal() || answer.renewal().status().code() != command::CODE_OK) {
           ++stats_.refused;
           return;
         }
         stats_.answers.add(boottime_now_ns() - sent_ns);
         if (answer.renewal().renewed_size() != named) ++stats_.short_answers;
       });
}

// --- The wire ----------------------------------------------------------------------------------------------

void FakeHost::send(peer::PeerRequest request, std::function<void(const peer::PeerAnswer&)> on_answer) {
  request.set_id(next_id_);
  if (!transport_->ask(coordinator_.host_id, request.SerializeAsString())) {
    ++stats_.refused;
    return fail_with("the connection to the coordinator takes nothing");
  }
  unanswered_.emplace(next_id_++, std::move(on_answer));
}

void FakeHost::answered(const std::string& payload) {
  peer::PeerAnswer answer;
  if (!answer.ParseFromString(payload)) return fail_with("an answer does not parse");
  const auto found = unanswered_.extract(answer.id());
  if (!found.empty()) found.mapped()(answer);  // else a push: what this host knows already
}

}  // namespace usblease::bench
