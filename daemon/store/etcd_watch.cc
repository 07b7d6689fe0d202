#include "daemon/store/etcd_watch.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "daemon/store/etcd_codec.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

constexpr std::chrono::milliseconds kAgain{50};
// A stream has no end, but each call must have a bound.
constexpr auto kStreamBound = std::chrono::hours(24);

}  // namespace

struct EtcdWatch::Stream {
  grpc::ClientContext context;
  grpc::Status status;
  EtcdEndpointPtr endpoint;
  etcdserverpb::WatchResponse response;
  bool idle = false;  // nothing of it is under way: the main loop has to consume first
  std::unique_ptr<grpc::ClientAsyncReaderWriter<etcdserverpb::WatchRequest, etcdserverpb::WatchResponse>> io;
};

EtcdWatch::EtcdWatch(EtcdLoop& loop, EtcdEndpoints& endpoints, std::string key_prefix, const std::string& prefix,
                     std::uint64_t from_revision, Deliver deliver)
    : loop_(loop),
      endpoints_(endpoints),
      key_prefix_(std::move(key_prefix)),
      range_(key_prefix_ + prefix),
      deliver_(std::move(deliver)),
      next_revision_(std::max<std::uint64_t>(from_revision, 1)) {}

void EtcdWatch::open() {
  if (ended_ || stream_) return;
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!endpoint) return;
  const auto stream = std::make_shared<Stream>();
  stream_ = stream;
  stream->endpoint = endpoint;
  // A member that loses its leader ends the stream: what happens elsewhere would not reach it.
  prepare_context(stream->context, kStreamBound, EtcdNeeds::kLeader);
  endpoint->calls.insert(&stream->context);
  stream->io = endpoint->watch->PrepareAsyncWatch(&stream->context, loop_.queue());
  stream->io->StartCall(loop_.step([self = shared_from_this(), stream](bool started) {
    return started ? self->created(stream) : self->finish(stream);
  }));
}

void EtcdWatch::created(const std::shared_ptr<Stream>& stream) {
  etcdserverpb::WatchRequest request;
  etcdserverpb::WatchCreateRequest& create = *request.mutable_create_request();
  create.set_key(range_);
  create.set_range_end(prefix_end(range_).value_or(std::string(1, '\0')));
  create.set_start_revision(static_cast<std::int64_t>(next_revision_));
  create.set_fragment(true);  // else one answer has no bound
  stream->io->Write(request, loop_.step([self = shared_from_this(), stream](bool written) {
    return written ? self->read(stream) : self->finish(stream);
  }));
}

void EtcdWatch::read(const std::shared_ptr<Stream>& stream) {
  stream->io->Read(&stream->response, loop_.step([self = shared_from_this(), stream](bool read) {
    return read ? self->take(stream) : self->finish(stream);
  }));
}

void EtcdWatch::take(const std::shared_ptr<Stream>& stream) {
  const etcdserverpb::WatchResponse& response = stream->response;
  if (ended_) return finish(stream);
  if (response.compact_revision() > 0) {
    end_compacted(static_cast<std::uint64_t>(response.compact_revision()));
    return finish(stream);
  }
  if (response.canceled()) return finish(stream);
  std::vector<WatchUpdate> updates;
  for (const etcdserverpb::Event& event : response.events()) {
    auto update = decode_event(event, key_prefix_);
    if (!update) {
      // It is neither left out nor handed over: the read that follows says what is wrong.
      log::error("a record in etcd is damaged", {{"ERROR", update.error().message}});
      end_compacted(next_revision_);
      return finish(stream);
    }
    next_revision_ = std::max(next_revision_, update->revision);
    updates.push_back(std::move(*update));
  }
  if (updates.empty()) return read(stream);
  // Of a cut answer the last revision may go on in the next one.
  if (!response.fragment()) ++next_revision_;
  stream->idle = true;
  deliver_(std::move(updates), [self = shared_from_this(), stream] {
    if (std::exchange(stream->idle, false)) self->read(stream);
  });
}

void EtcdWatch::end_compacted(std::uint64_t revision) {
  ended_ = true;
  deliver_({{WatchUpdate::What::kCompacted, revision, {}, std::nullopt}}, [] {});
}

void EtcdWatch::finish(const std::shared_ptr<Stream>& stream) {
  stream->context.TryCancel();
  stream->io->Finish(&stream->status,
                     loop_.step([self = shared_from_this(), stream](bool) { self->finished(stream); }));
}

void EtcdWatch::finished(const std::shared_ptr<Stream>& stream) {
  stream->endpoint->calls.erase(&stream->context);
  stream_.reset();
  if (ended_) return;
  again_ = loop_.run_after(kAgain, [self = shared_from_this()] { self->open(); });
}

void EtcdWatch::cancel() {
  ended_ = true;
  again_.cancel();
  if (!stream_) return;
  stream_->context.TryCancel();
  if (std::exchange(stream_->idle, false)) finish(stream_);
}

}  // namespace usblease::store
