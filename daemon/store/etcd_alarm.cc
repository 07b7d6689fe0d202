#include "daemon/store/etcd_alarm.h"

#include <cstdint>
#include <utility>
#include <vector>

namespace usblease::store {
namespace {

using Done = std::function<void(const grpc::Status&, const etcdserverpb::AlarmResponse&)>;

void start_alarm_call(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::chrono::milliseconds bound,
                      const etcdserverpb::AlarmRequest& request, Done done) {
  start_unary<etcdserverpb::AlarmResponse>(
      loop, endpoint, bound, EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->maintenance->PrepareAsyncAlarm(context, request, queue);
      },
      std::move(done));
}

// The last of `members` first.
void end_next(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::chrono::milliseconds bound,
              std::vector<std::uint64_t> members, const std::function<void(const grpc::Status&)>& done) {
  if (members.empty()) return done(grpc::Status::OK);
  etcdserverpb::AlarmRequest request;
  request.set_action(etcdserverpb::AlarmRequest::DEACTIVATE);
  request.set_alarm(etcdserverpb::NOSPACE);
  request.set_memberid(members.back());
  members.pop_back();
  start_alarm_call(loop, endpoint, bound, request,
                   [&loop, endpoint, bound, members, done](const grpc::Status& status, const auto&) {
                     if (!status.ok()) return done(status);
                     end_next(loop, endpoint, bound, members, done);
                   });
}

}  // namespace

void end_space_alarms(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::chrono::milliseconds bound,
                      std::function<void(const grpc::Status&)> done) {
  etcdserverpb::AlarmRequest request;
  request.set_action(etcdserverpb::AlarmRequest::GET);
  request.set_alarm(etcdserverpb::NOSPACE);
  start_alarm_call(loop, endpoint, bound, request,
                   [&loop, endpoint, bound, done = std::move(done)](const grpc::Status& status,
                                                                    const etcdserverpb::AlarmResponse& response) {
                     if (!status.ok()) return done(status);
                     std::vector<std::uint64_t> members;
                     for (const etcdserverpb::AlarmMember& alarm : response.alarms()) {
                       if (alarm.alarm() == etcdserverpb::NOSPACE) members.push_back(alarm.memberid());
                     }
                     end_next(loop, endpoint, bound, std::move(members), done);
                   });
}

}  // namespace usblease::store
