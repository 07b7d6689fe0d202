#include "tests/sim/device.h"

#include <utility>

namespace usblease::sim {
namespace {

// How long an endpoint takes to cancel what is queued: libusb's abort of a URB.
constexpr Ns kCancelMax = 200 * kMs;
constexpr Ns kHelloMax = 5 * kMs;

}  // namespace

// --- The device ------------------------------------------------------------------------------------

void DeviceStream::on_hello(Process* client, std::function<void()> callback) {
  client_ = client;
  hello_ = std::move(callback);
  if (state_ == State::kServed && hello_) device_.kernel_.after(0, client_, hello_);
}

void DeviceStream::closed() { device_.client_closed(shared_from_this()); }

std::shared_ptr<DeviceStream> Device::connect(Process* client) {
  if (!plugged_) return nullptr;
  auto stream = std::make_shared<DeviceStream>(*this, client);
  waiting_.push_back(stream);
  serve_next();
  return stream;
}

void Device::serve_next() {
  if (current_ || waiting_.empty() || !plugged_) return;
  current_ = std::move(waiting_.front());
  waiting_.pop_front();
  kernel_.after(kernel_.chance().below(kHelloMax), nullptr, [this, stream = current_] {
    if (stream->state_ != DeviceStream::State::kWaiting) return;
    stream->state_ = DeviceStream::State::kServed;
    if (stream->hello_) kernel_.after(0, stream->client_, stream->hello_);
  });
}

void Device::client_closed(const std::shared_ptr<DeviceStream>& stream) {
  if (stream->state_ == DeviceStream::State::kEnded) return;
  if (stream != current_) {
    std::erase(waiting_, stream);
    stream->state_ = DeviceStream::State::kEnded;
    return;
  }
  const bool used = stream->state_ == DeviceStream::State::kServed && stream->token != 0;
  stream->state_ = DeviceStream::State::kEnding;
  kernel_.after(used ? kernel_.chance().below(kCancelMax) : kernel_.chance().below(kMs), nullptr,
                [this, stream] { finish(stream); });
}

void Device::finish(const std::shared_ptr<DeviceStream>& stream) {
  if (stream->state_ == DeviceStream::State::kEnded) return;
  stream->state_ = DeviceStream::State::kEnded;
  if (stream->ended_) kernel_.after(0, stream->client_, stream->ended_);
  if (current_ == stream) current_.reset();
  serve_next();
}

void Device::plug() {
  plugged_ = true;
  serve_next();
}

void Device::unplug() {
  plugged_ = false;
  for (auto& stream : std::exchange(waiting_, {})) finish(stream);
  if (const auto stream = current_) finish(stream);
}

// --- The relay -------------------------------------------------------------------------------------

RelayProcess::RelayProcess(Kernel& kernel, Process& process, Start start)
    : born_ns(kernel.now()), kernel_(kernel), process_(process), start_(std::move(start)) {
  endpoint_ = std::dynamic_pointer_cast<DeviceStream>(kernel_.descriptor(start_.endpoint_fd));
  guest_ = std::dynamic_pointer_cast<GuestConnection>(kernel_.descriptor(start_.guest_fd));
  kernel_.after(kernel_.chance().between(kMs / 2, 3 * kMs), &process_, [this] { begin(); });
}

void RelayProcess::begin() {
  if (!guest_ || !endpoint_) return end(relay::ENDING_INTERNAL);
  guest_->on_guest_gone = [this] {
    kernel_.after(0, &process_, [this] {
      if (!tick()) end(relay::ENDING_GUEST_CLOSED);
    });
  };
  endpoint_->on_end([this] { on_endpoint_end(); });
  if (!guest_->guest_lives) end(relay::ENDING_GUEST_CLOSED);
  // Also when it was told to end before it had begun: the end of the stream is still to be seen.
  if (endpoint_->state() == DeviceStream::State::kEnded) return on_endpoint_end();
  if (ended_ != relay::ENDING_UNSPECIFIED) return;
  endpoint_->on_hello(&process_, [this] {
    if (tick() || connected_) return;
    connected_ = true;
    endpoint_->token = start_.token;
    tell_all();
  });
  arm_timer();
}

bool RelayProcess::forwards() const {
  return connected_ && ended_ == relay::ENDING_UNSPECIFIED && process_.runs() && guest_->guest_lives &&
         process_.machine->local(kernel_.now()) < start_.deadline_ns;
}

// The verdict on the deadline, before anything else after each waking. True: it has ended.
bool RelayProcess::tick() {
  if (ended_ == relay::ENDING_UNSPECIFIED && process_.machine->local(kernel_.now()) >= start_.deadline_ns)
    end(relay::ENDING_DEADLINE);
  return ended_ != relay::ENDING_UNSPECIFIED;
}

void RelayProcess::arm_timer() {
  kernel_.at(process_.machine->true_at(start_.deadline_ns), &process_, [this, deadline = start_.deadline_ns] {
    if (deadline == start_.deadline_ns) tick();
  });
}

void RelayProcess::end(relay::Ending why) {
  if (ended_ != relay::ENDING_UNSPECIFIED) return;
  ended_ = why;
  kernel_.trace(process_.name, relay::Ending_Name(why));
  relay::ToDaemon message;
  message.mutable_ended()->set_why(why);
  tell(message);
  kernel_.close_descriptor(start_.guest_fd);
  kernel_.close_descriptor(start_.endpoint_fd);
}

void RelayProcess::on_endpoint_end() {
  end(relay::ENDING_ENDPOINT_CLOSED);
  if (std::exchange(fenced_, true)) return;
  relay::ToDaemon message;
  message.mutable_fenced()->set_token(start_.token);
  tell(message);
}

void RelayProcess::connect(Process* daemon, std::function<void(std::string)> to_daemon, std::function<void()> broken) {
  daemon_ = daemon;
  to_daemon_ = std::move(to_daemon);
  broken_ = std::move(broken);
  kernel_.after(kMs / 10, &process_, [this] {
    tick();
    relay::ToDaemon message;
    relay::Hello& hello = *message.mutable_hello();
    hello.set_version(1);
    hello.set_device(start_.device);
    hello.set_token(start_.token);
    hello.set_guest_uuid(start_.guest_uuid);
    hello.set_instance(start_.instance);
    hello.set_peer_pid(start_.peer_pid);
    hello.set_deadline_ns(start_.deadline_ns);
    tell(message);
    tell_all();
  });
}

void RelayProcess::disconnect(Process* daemon) {
  if (daemon_ != daemon) return;
  daemon_ = nullptr;
  to_daemon_ = nullptr;
  broken_ = nullptr;
}

void RelayProcess::tell_all() {
  relay::ToDaemon message;
  if (connected_) {
    message.mutable_connected();
    tell(message);
    message.mutable_device_seen()->set_vendor(0x1234);
    tell(message);
  }
  if (ended_ != relay::ENDING_UNSPECIFIED) {
    message.mutable_ended()->set_why(ended_);
    tell(message);
  }
  if (fenced_) {
    message.mutable_fenced()->set_token(start_.token);
    tell(message);
  }
}

void RelayProcess::tell(const relay::ToDaemon& message) {
  if (daemon_ == nullptr || daemon_->dead) return;
  kernel_.after(kMs / 20, daemon_, [to = to_daemon_, bytes = message.SerializeAsString()] { to(bytes); });
}

void RelayProcess::hear(const std::string& bytes) {
  kernel_.after(kMs / 20, &process_, [this, bytes] {
    const bool ended = tick();
    relay::ToRelay message;
    if (!message.ParseFromString(bytes)) return kernel_.fail("a relay was told what is no relay message");
    if (message.has_renew() && !ended && message.renew().deadline_ns() > start_.deadline_ns) {
      start_.deadline_ns = message.renew().deadline_ns();
      arm_timer();
    }
    if (message.has_revoke() && !ended) end(relay::ENDING_REVOKED);
    if (message.has_ack() && fenced_) die();
  });
}

void RelayProcess::die(Ns unseen_ns) {
  if (process_.dead) return;
  kernel_.kill(process_);
  if (ended_ == relay::ENDING_UNSPECIFIED) {
    kernel_.close_descriptor(start_.guest_fd);
    kernel_.after(unseen_ns, nullptr, [&kernel = kernel_, fd = start_.endpoint_fd] { kernel.close_descriptor(fd); });
  }
  if (guest_) guest_->on_guest_gone = nullptr;
  if (daemon_ != nullptr && !daemon_->dead && broken_) kernel_.after(kMs / 20, daemon_, broken_);
}

}  // namespace usblease::sim
