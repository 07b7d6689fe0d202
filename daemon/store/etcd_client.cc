#include "daemon/store/etcd_client.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <utility>

#include "common/text.h"
#include "daemon/store/etcd_alarm.h"
#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_fault.h"
#include "daemon/store/etcd_loop.h"
#include "daemon/store/etcd_snapshot.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kDefragmentBound{60'000};
constexpr milliseconds kSnapshotBound{120'000};
constexpr std::size_t kWaitingMax = 64;
constexpr std::size_t kTextMax = 256;

ErrorCode code_of(EtcdFault fault) {
  switch (fault) {
    case EtcdFault::kNotBegun:
    case EtcdFault::kNotYet:
    case EtcdFault::kNoSpace:
      return ErrorCode::kUnavailable;
    case EtcdFault::kRefused:
    case EtcdFault::kTooLarge:
    case EtcdFault::kLeaseGone:
    case EtcdFault::kCompacted:
    case EtcdFault::kCorrupt:
      return ErrorCode::kRefused;
    case EtcdFault::kDenied:
      return ErrorCode::kDenied;
    case EtcdFault::kNotFound:
      return ErrorCode::kNotFound;
    case EtcdFault::kNone:
    case EtcdFault::kUnknown:
      return ErrorCode::kTimedOut;
  }
  return ErrorCode::kTimedOut;
}

// Of a call that only reads: nothing can have happened.
Error read_error_of(const EtcdEndpoint& endpoint, const grpc::Status& status) {
  const EtcdFault fault = etcd_fault(status);
  return {fault == EtcdFault::kUnknown ? ErrorCode::kUnavailable : code_of(fault),
          "etcd at " + endpoint.address + ": " + etcd_message(status)};
}

Error error_of(const EtcdEndpoint& endpoint, const grpc::Status& status) {
  return {code_of(etcd_fault(status)), "etcd at " + endpoint.address + ": " + etcd_message(status)};
}

milliseconds left(EtcdLoop::Clock::time_point deadline) {
  return std::max(std::chrono::duration_cast<milliseconds>(deadline - EtcdLoop::Clock::now()), milliseconds(1));
}

template <typename Strings>
std::vector<std::string> texts(const Strings& strings) {
  std::vector<std::string> out;
  for (const std::string& text : strings) out.push_back(escape_text(text.substr(0, kTextMax)));
  return out;
}

template <typename Response>
EtcdMembers to_members(const Response& response) {
  EtcdMembers out{response.header().cluster_id(), {}};
  for (const etcdserverpb::Member& member : response.members()) {
    out.members.push_back({member.id(), escape_text(member.name().substr(0, kTextMax)), texts(member.peerurls()),
                           texts(member.clienturls()), member.islearner()});
  }
  return out;
}

class Client final : public EtcdClient {
 public:
  Client(EtcdAccess access, Executor executor)
      : timeout_(access.options.call_timeout_ms),
        executor_(std::move(executor)),
        endpoints_(loop_, std::move(access), [this] { pump(); }) {
    loop_.post([this] { endpoints_.start(); });
  }
  ~Client() override;

  Result<void> set_endpoints(const std::vector<std::string>& endpoints) override;
  void list(std::function<void(Result<EtcdMembers>)> done) override;
  void add_learner(std::vector<std::string> peer_urls, std::function<void(Result<EtcdMembers>)> done) override;
  void promote(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) override;
  void remove(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) override;
  void update(std::uint64_t member_id, std::vector<std::string> peer_urls,
              std::function<void(Result<EtcdMembers>)> done) override;
  void status(std::string endpoint, std::function<void(Result<EtcdStatus>)> done) override;
  void move_leader(std::string endpoint, std::uint64_t to_member_id, std::function<void(Result<void>)> done) override;
  void defragment(std::string endpoint, std::function<void(Result<void>)> done) override;
  void end_space_alarm(std::function<void(Result<void>)> done) override;
  void snapshot(std::string endpoint, std::string path, std::function<void(Result<EtcdSnapshot>)> done) override;

 private:
  // A call that waits for a member with a quorum. `go` begins it there; `give_up` ends it.
  struct Waiting {
    EtcdLoop::Clock::time_point deadline;
    std::function<void(const EtcdEndpointPtr&)> go;
    std::function<void(std::string)> give_up;
  };

  template <typename T>
  std::function<void(Result<T>)> answering(std::function<void(Result<T>)> done);

  template <typename Response, typename T, typename Prepare, typename Convert>
  void with_quorum(std::function<void(Result<T>)> done, Prepare prepare, Convert convert);
  template <typename Response, typename T, typename Prepare, typename Convert>
  void attempt(const EtcdEndpointPtr& endpoint, EtcdLoop::Clock::time_point deadline,
               std::function<void(Result<T>)> done, Prepare prepare, Convert convert);
  template <typename Response, typename Prepare>
  void at_endpoint(std::string address, milliseconds bound, std::function<void(Result<void>)> done, Prepare prepare);
  template <typename Response, typename Prepare>
  void members_call(std::function<void(Result<EtcdMembers>)> done, Prepare prepare);

  void list_by(EtcdLoop::Clock::time_point deadline, const std::function<void(Result<EtcdMembers>)>& done);
  void list_at(const EtcdEndpointPtr& endpoint, EtcdLoop::Clock::time_point deadline,
               const std::function<void(Result<EtcdMembers>)>& done);

  void wait(Waiting waiting);
  void pump();
  void expire();
  EtcdEndpointPtr at(const std::string& address);

  const milliseconds timeout_;
  const Executor executor_;
  EtcdLoop loop_;
  EtcdEndpoints endpoints_;
  std::deque<Waiting> waiting_;
  EtcdTimer deadline_;
  std::vector<std::weak_ptr<EtcdEndpoint>> strangers_;  // addresses that are not endpoints, with calls under way
  bool closed_ = false;
};

Client::~Client() {
  std::promise<void> closed;
  loop_.post([this, &closed] {
    closed_ = true;
    deadline_.cancel();
    for (const Waiting& waiting : std::exchange(waiting_, {})) waiting.give_up("the client is being closed");
    endpoints_.close();
    for (const auto& weak : strangers_) {
      const EtcdEndpointPtr stranger = weak.lock();
      if (!stranger) continue;
      for (grpc::ClientContext* context : stranger->calls) context->TryCancel();
    }
    closed.set_value();
  });
  closed.get_future().wait();
  loop_.stop();
}

Result<void> Client::set_endpoints(const std::vector<std::string>& endpoints) {
  if (auto checked = check_etcd_endpoints(endpoints); !checked) return checked;
  loop_.post([this, endpoints] { endpoints_.set(endpoints); });
  return {};
}

template <typename T>
std::function<void(Result<T>)> Client::answering(std::function<void(Result<T>)> done) {
  return [this, done = std::move(done)](Result<T> result) {
    executor_([done, result = std::move(result)]() mutable { done(std::move(result)); });
  };
}

void Client::wait(Waiting waiting) {
  if (closed_) return waiting.give_up("the client is being closed");
  if (waiting_.size() >= kWaitingMax) return waiting.give_up("too many calls wait; try again later");
  waiting_.push_back(std::move(waiting));
  pump();
}

void Client::pump() {
  while (!waiting_.empty()) {
    const EtcdEndpointPtr endpoint = endpoints_.pick();
    if (!endpoint) break;
    const Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    next.go(endpoint);
  }
  deadline_.cancel();
  if (waiting_.empty()) return;
  const auto first = std::min_element(waiting_.begin(), waiting_.end(),
                                      [](const Waiting& a, const Waiting& b) { return a.deadline < b.deadline; });
  deadline_ = loop_.run_at(first->deadline, [this] { expire(); });
}

void Client::expire() {
  std::deque<Waiting> over;
  std::deque<Waiting> rest;
  for (Waiting& waiting : waiting_) {
    (waiting.deadline <= EtcdLoop::Clock::now() ? over : rest).push_back(std::move(waiting));
  }
  waiting_ = std::move(rest);
  const std::string problem = endpoints_.problem();
  for (const Waiting& waiting : over) waiting.give_up(problem);
  pump();
}

template <typename Response, typename T, typename Prepare, typename Convert>
void Client::with_quorum(std::function<void(Result<T>)> done, Prepare prepare, Convert convert) {
  const auto deadline = EtcdLoop::Clock::now() + timeout_;
  loop_.post([this, deadline, done = answering<T>(std::move(done)), prepare, convert] {
    wait({deadline,
          [this, deadline, done, prepare, convert](const EtcdEndpointPtr& endpoint) {
            attempt<Response, T>(endpoint, deadline, done, prepare, convert);
          },
          [done](const std::string& why) { done(fail(ErrorCode::kUnavailable, "etcd was not asked: " + why)); }});
  });
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): what std::function owns

template <typename Response, typename T, typename Prepare, typename Convert>
void Client::attempt(const EtcdEndpointPtr& endpoint, EtcdLoop::Clock::time_point deadline,
                     std::function<void(Result<T>)> done, Prepare prepare, Convert convert) {
  start_unary<Response>(
      loop_, endpoint, left(deadline), EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) { return prepare(*endpoint, context, queue); },
      [this, endpoint, deadline, done, prepare, convert](const grpc::Status& status, const Response& response) {
        if (status.ok()) return done(convert(response));
        if (etcd_fault(status) != EtcdFault::kNotBegun || EtcdLoop::Clock::now() >= deadline) {
          return done(tl::unexpected(error_of(*endpoint, status)));
        }
        endpoints_.doubt(endpoint, etcd_message(status));
        wait({deadline,
              [this, deadline, done, prepare, convert](const EtcdEndpointPtr& next) {
                attempt<Response, T>(next, deadline, done, prepare, convert);
              },
              [done](const std::string& why) { done(fail(ErrorCode::kUnavailable, "etcd was not asked: " + why)); }});
      });
}

EtcdEndpointPtr Client::at(const std::string& address) {
  EtcdEndpointPtr endpoint = endpoints_.at(address);
  const auto& known = endpoints_.all();
  if (std::find(known.begin(), known.end(), endpoint) == known.end()) {
    std::erase_if(strangers_, [](const auto& weak) { return weak.expired(); });
    strangers_.push_back(endpoint);
  }
  return endpoint;
}

template <typename Response, typename Prepare>
void Client::at_endpoint(std::string address, milliseconds bound, std::function<void(Result<void>)> done,
                         Prepare prepare) {
  auto answer = answering<void>(std::move(done));
  if (auto checked = check_etcd_endpoints({address}); !checked) return answer(tl::unexpected(checked.error()));
  loop_.post([this, address = std::move(address), bound, answer = std::move(answer), prepare] {
    const EtcdEndpointPtr endpoint = at(address);
    start_unary<Response>(
        loop_, endpoint, bound, EtcdNeeds::kNothing,
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) { return prepare(*endpoint, context, queue); },
        [endpoint, answer](const grpc::Status& status, const Response&) {
          if (status.ok()) return answer({});
          answer(tl::unexpected(error_of(*endpoint, status)));
        });
  });
}

template <typename Response, typename Prepare>
void Client::members_call(std::function<void(Result<EtcdMembers>)> done, Prepare prepare) {
  with_quorum<Response, EtcdMembers>(std::move(done), std::move(prepare),
                                     [](const Response& response) { return to_members(response); });
}

void Client::list(std::function<void(Result<EtcdMembers>)> done) {
  const auto deadline = EtcdLoop::Clock::now() + timeout_;
  loop_.post([this, deadline, done = answering<EtcdMembers>(std::move(done))] { list_by(deadline, done); });
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): what std::function owns

void Client::list_by(EtcdLoop::Clock::time_point deadline, const std::function<void(Result<EtcdMembers>)>& done) {
  auto give_up = [done](const std::string& why) { done(fail(ErrorCode::kUnavailable, "etcd was not asked: " + why)); };
  wait({deadline, [this, deadline, done](const EtcdEndpointPtr& endpoint) { list_at(endpoint, deadline, done); },
        std::move(give_up)});
}

// etcd 3.4 lists the members as the asked one knows them. After a linearizable read it knows all that came before,
// because membership goes the way of all writes.
void Client::list_at(const EtcdEndpointPtr& endpoint, EtcdLoop::Clock::time_point deadline,
                     const std::function<void(Result<EtcdMembers>)>& done) {
  const auto failed = [this, endpoint, deadline, done](const grpc::Status& status) {
    if (EtcdLoop::Clock::now() >= deadline) return done(tl::unexpected(read_error_of(*endpoint, status)));
    endpoints_.doubt(endpoint, etcd_message(status));
    list_by(deadline, done);
  };
  const auto members = [this, endpoint, deadline, done, failed] {
    start_unary<etcdserverpb::MemberListResponse>(
        loop_, endpoint, left(deadline), EtcdNeeds::kLeader,
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
          return endpoint->cluster->PrepareAsyncMemberList(context, etcdserverpb::MemberListRequest(), queue);
        },
        [done, failed](const grpc::Status& status, const etcdserverpb::MemberListResponse& response) {
          if (!status.ok()) return failed(status);
          done(to_members(response));
        });
  };
  etcdserverpb::RangeRequest any;
  any.set_key("usblease");
  any.set_count_only(true);
  start_unary<etcdserverpb::RangeResponse>(
      loop_, endpoint, left(deadline), EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->kv->PrepareAsyncRange(context, any, queue);
      },
      [members, failed](const grpc::Status& status, const etcdserverpb::RangeResponse&) {
        status.ok() ? members() : failed(status);
      });
}

void Client::add_learner(std::vector<std::string> peer_urls, std::function<void(Result<EtcdMembers>)> done) {
  etcdserverpb::MemberAddRequest request;
  for (std::string& url : peer_urls) request.add_peerurls(std::move(url));
  request.set_islearner(true);
  members_call<etcdserverpb::MemberAddResponse>(
      std::move(done), [request](EtcdEndpoint& endpoint, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint.cluster->PrepareAsyncMemberAdd(context, request, queue);
      });
}

void Client::promote(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) {
  etcdserverpb::MemberPromoteRequest request;
  request.set_id(member_id);
  members_call<etcdserverpb::MemberPromoteResponse>(
      std::move(done), [request](EtcdEndpoint& endpoint, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint.cluster->PrepareAsyncMemberPromote(context, request, queue);
      });
}

void Client::remove(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) {
  etcdserverpb::MemberRemoveRequest request;
  request.set_id(member_id);
  members_call<etcdserverpb::MemberRemoveResponse>(
      std::move(done), [request](EtcdEndpoint& endpoint, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint.cluster->PrepareAsyncMemberRemove(context, request, queue);
      });
}

void Client::update(std::uint64_t member_id, std::vector<std::string> peer_urls,
                    std::function<void(Result<EtcdMembers>)> done) {
  etcdserverpb::MemberUpdateRequest request;
  request.set_id(member_id);
  for (std::string& url : peer_urls) request.add_peerurls(std::move(url));
  members_call<etcdserverpb::MemberUpdateResponse>(
      std::move(done), [request](EtcdEndpoint& endpoint, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint.cluster->PrepareAsyncMemberUpdate(context, request, queue);
      });
}

void Client::status(std::string endpoint, std::function<void(Result<EtcdStatus>)> done) {
  auto answer = answering<EtcdStatus>(std::move(done));
  if (auto checked = check_etcd_endpoints({endpoint}); !checked) return answer(tl::unexpected(checked.error()));
  loop_.post([this, endpoint = std::move(endpoint), answer = std::move(answer)] {
    const EtcdEndpointPtr one = at(endpoint);
    start_unary<etcdserverpb::StatusResponse>(
        loop_, one, timeout_, EtcdNeeds::kNothing,
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
          return one->maintenance->PrepareAsyncStatus(context, etcdserverpb::StatusRequest(), queue);
        },
        [one, answer](const grpc::Status& status, const etcdserverpb::StatusResponse& response) {
          if (status.ok()) return answer(to_status(response));
          answer(tl::unexpected(read_error_of(*one, status)));
        });
  });
}

void Client::move_leader(std::string endpoint, std::uint64_t to_member_id, std::function<void(Result<void>)> done) {
  etcdserverpb::MoveLeaderRequest request;
  request.set_targetid(to_member_id);
  at_endpoint<etcdserverpb::MoveLeaderResponse>(
      std::move(endpoint), timeout_, std::move(done),
      [request](EtcdEndpoint& at, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return at.maintenance->PrepareAsyncMoveLeader(context, request, queue);
      });
}

void Client::defragment(std::string endpoint, std::function<void(Result<void>)> done) {
  at_endpoint<etcdserverpb::DefragmentResponse>(
      std::move(endpoint), kDefragmentBound, std::move(done),
      [](EtcdEndpoint& at, grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return at.maintenance->PrepareAsyncDefragment(context, etcdserverpb::DefragmentRequest(), queue);
      });
}

void Client::end_space_alarm(std::function<void(Result<void>)> done) {
  const auto deadline = EtcdLoop::Clock::now() + timeout_;
  loop_.post([this, deadline, done = answering<void>(std::move(done))] {
    wait({deadline,
          [this, deadline, done](const EtcdEndpointPtr& endpoint) {
            end_space_alarms(loop_, endpoint, left(deadline), [endpoint, done](const grpc::Status& status) {
              if (status.ok()) return done({});
              done(tl::unexpected(error_of(*endpoint, status)));
            });
          },
          [done](const std::string& why) { done(fail(ErrorCode::kUnavailable, "etcd was not asked: " + why)); }});
  });
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): what std::function owns

void Client::snapshot(std::string endpoint, std::string path, std::function<void(Result<EtcdSnapshot>)> done) {
  auto answer = answering<EtcdSnapshot>(std::move(done));
  if (auto checked = check_etcd_endpoints({endpoint}); !checked) return answer(tl::unexpected(checked.error()));
  loop_.post([this, endpoint = std::move(endpoint), path = std::move(path), answer = std::move(answer)] {
    start_snapshot(loop_, at(endpoint), path, kSnapshotBound, answer);
  });
}

}  // namespace

Result<std::unique_ptr<EtcdClient>> EtcdClient::open(const EtcdOptions& options, Executor executor) {
  auto access = load_etcd_access(options);
  if (!access) return tl::unexpected(access.error());
  return std::make_unique<Client>(std::move(*access), std::move(executor));
}

}  // namespace usblease::store
