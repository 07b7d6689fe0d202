// The members of etcd that are known by address: a connection to each, how it is, and which one is used. A member is
// fit when it answers, belongs to the right cluster, votes, and has a leader. One that stops being fit, or
// whose leader is another one than before, ends the calls that it has at once, so that nobody waits for it.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/async_unary_call.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/error.h"
#include "daemon/store/etcd_client.h"
#include "daemon/store/etcd_loop.h"
#include "etcd.grpc.pb.h"

namespace usblease::store {

// The options, checked, and the bytes of the PEM files.
struct EtcdAccess {
  EtcdOptions options;
  std::string ca;
  std::string cert;
  std::string key;
};
Result<EtcdAccess> load_etcd_access(const EtcdOptions& options);
Result<void> check_etcd_endpoints(const std::vector<std::string>& endpoints);

struct EtcdEndpoint {
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<etcdserverpb::KV::Stub> kv;
  std::unique_ptr<etcdserverpb::Lease::Stub> lease;
  std::unique_ptr<etcdserverpb::Watch::Stub> watch;
  std::unique_ptr<etcdserverpb::Cluster::Stub> cluster;
  std::unique_ptr<etcdserverpb::Maintenance::Stub> maintenance;

  bool fit = false;
  bool answers = false;  // to "how are you", whatever it says
  std::string problem;   // not fit: why, for people
  EtcdStatus status;     // the last that it said
  bool resting = false;  // being defragmented
  bool asking = false;
  unsigned faults = 0;                             // since the last success of a call
  EtcdLoop::Clock::time_point on_probation_until;  // after a fault: only when no other one is as good
  EtcdTimer next_ask;
  std::set<grpc::ClientContext*> calls;  // to be ended when it is not fit any more
};
using EtcdEndpointPtr = std::shared_ptr<EtcdEndpoint>;

EtcdStatus to_status(const etcdserverpb::StatusResponse& response);

// On the loop's thread.
class EtcdEndpoints {
 public:
  // `changed`: something is fit that was not, or the other way round, or problem() says something else.
  EtcdEndpoints(EtcdLoop& loop, EtcdAccess access, std::function<void()> changed);

  void start();  // with the endpoints of the options
  void set(const std::vector<std::string>& addresses);
  void use_credentials(const EtcdAccess& access);  // on new connections, which replace the present ones
  void close();                                    // ends all calls; nothing is fit any more

  // The first that is fit and was not doubted lately: the order of the endpoints is the order of preference. Else the
  // one in use, else any that is fit; nullptr: none.
  EtcdEndpointPtr pick();
  EtcdEndpointPtr at(const std::string& address);  // also of an unknown address: a connection for one call
  [[nodiscard]] const std::vector<EtcdEndpointPtr>& all() const { return endpoints_; }

  // A call on it failed in a way that makes it doubtful: it is not fit until it has answered again.
  void doubt(const EtcdEndpointPtr& endpoint, const std::string& why);
  void succeeded(const EtcdEndpointPtr& endpoint) { endpoint->faults = 0; }
  void rest(const EtcdEndpointPtr& endpoint, bool resting);
  void note_no_space();  // a call was told so

  [[nodiscard]] std::string problem() const;  // empty: none
  [[nodiscard]] bool no_space() const;

 private:
  EtcdEndpointPtr connect(const std::string& address);
  void ask(const EtcdEndpointPtr& endpoint);
  void ask_later(const EtcdEndpointPtr& endpoint, std::chrono::milliseconds delay);
  void answered(const EtcdEndpointPtr& endpoint, const grpc::Status& status,
                const etcdserverpb::StatusResponse& response);
  std::string judge(const EtcdStatus& status);
  void put_out_of_use(EtcdEndpoint& endpoint, std::string why);
  static void end_calls(const EtcdEndpoint& endpoint);
  [[nodiscard]] bool known(const EtcdEndpointPtr& endpoint) const;

  EtcdLoop& loop_;
  const EtcdAccess access_;
  const std::function<void()> changed_;
  const std::chrono::milliseconds ask_every_;
  const std::chrono::milliseconds silence_max_;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
  std::uint64_t cluster_id_;
  std::vector<EtcdEndpointPtr> endpoints_;
  EtcdEndpointPtr current_;
  bool closed_ = false;
};

// One call of gRPC that is answered once. `prepare` is the stub's PrepareAsyncX; `done` gets the status and the
// response, on the loop's thread. `bound` is from now on. A call for which `leader` is asked does not begin at a member
// that has none.
enum class EtcdNeeds : std::uint8_t { kNothing, kLeader };

template <typename Response>
struct EtcdUnary {
  grpc::ClientContext context;
  Response response;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader;
};

void prepare_context(grpc::ClientContext& context, std::chrono::milliseconds bound, EtcdNeeds needs);

template <typename Response, typename Prepare, typename Done>
void start_unary(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::chrono::milliseconds bound, EtcdNeeds needs,
                 Prepare prepare, Done done) {
  auto call = std::make_shared<EtcdUnary<Response>>();
  prepare_context(call->context, bound, needs);
  endpoint->calls.insert(&call->context);
  call->reader = prepare(&call->context, loop.queue());
  call->reader->StartCall();
  call->reader->Finish(&call->response, &call->status,
                       loop.step([call, endpoint, done = std::move(done)](bool) mutable {
                         endpoint->calls.erase(&call->context);
                         done(call->status, call->response);
                       }));
}

}  // namespace usblease::store
