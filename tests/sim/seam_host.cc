// The edges of daemon/host: disk, guest processes, guest sockets, relays and endpoints of the simulated world. They
// replace file_writer.cc, home_file_open.cc, guest_process.cc, guest_sockets.cc, relays.cc, endpoint*.cc,
// qemu_witness.cc and lease_page_writer.cc at link time; everything above them is the product's.
#include <algorithm>
#include <utility>

#include "common/main_loop.h"
#include "daemon/host/endpoint.h"
#include "daemon/host/guest_process.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/home_codec.h"
#include "daemon/host/home_file.h"
#include "daemon/host/qemu_witness.h"
#include "daemon/host/relays.h"
#include "plugin/lease-page/lease_page_writer.h"
#include "tests/sim/world.h"

namespace usblease::host {

using sim::Kernel;
using sim::kMs;
using sim::World;

// --- The home's disk -------------------------------------------------------------------------------

Result<std::unique_ptr<HomeFile>> HomeFile::open(const std::string& path, const std::string& host_id) {
  const sim::DiskFile& file = World::get().this_host().disk[path];
  Result<home::HomeFile> home = file.durable ? decode_home(*file.durable, host_id, path) : new_home(host_id);
  if (!home) return tl::unexpected(home.error());
  auto writer = std::make_unique<FileWriter>(UniqueFd(), path);
  return std::unique_ptr<HomeFile>(new HomeFile(path, std::move(*home), std::move(writer)));
}

FileWriter::FileWriter(UniqueFd directory, std::string name)
    : directory_(std::move(directory)), name_(std::move(name)), self_(std::make_shared<FileWriter*>(this)) {}

FileWriter::~FileWriter() = default;

void FileWriter::write(std::string bytes, std::function<void(Result<void>)> done) {
  Kernel& kernel = Kernel::get();
  sim::HostState& host = World::get().this_host();
  done_ = std::move(done);
  host.disk[name_].pending = std::move(bytes);
  const bool full = kernel.chance().permille(host.disk_full_permille);
  kernel.after(kernel.chance().between(kMs / 10, host.disk_delay_max), kernel.current(),
               [this, &host, full, self = std::weak_ptr(self_)] {
                 if (self.expired()) return;
                 sim::DiskFile& file = host.disk[name_];
                 if (full) {
                   file.pending.reset();
                   return std::exchange(done_, nullptr)(fail(ErrorCode::kUnavailable, "no room on the disk"));
                 }
                 file.durable = std::exchange(file.pending, std::nullopt);
                 std::exchange(done_, nullptr)({});
               });
}

// --- Guest processes -------------------------------------------------------------------------------

namespace {

class PidDescriptor : public sim::Descriptor {
 public:
  explicit PidDescriptor(int pid) : pid(pid) {}
  void closed() override {}
  const int pid;
};

}  // namespace

Result<GuestProcess> GuestProcess::open(pid_t pid) {
  if (!World::get().process_lives(pid)) return fail(ErrorCode::kNotFound, "there is no such process");
  const int fd = Kernel::get().add_descriptor(std::make_shared<PidDescriptor>(pid));
  return GuestProcess(pid, static_cast<std::uint64_t>(pid), UniqueFd(fd));
}

bool GuestProcess::alive() const { return World::get().process_lives(pid_); }

Result<GuestProcess> qemu_of(const std::string& /*run_dir*/, const std::string& guest_name) {
  World& world = World::get();
  const auto found = world.guests().find(guest_name);
  const bool here = found != world.guests().end() && found->second.qemu != nullptr &&
                    found->second.qemu->machine == Kernel::get().current()->machine;
  if (!here) return fail(ErrorCode::kNotFound, "guest " + guest_name + " does not run");
  return GuestProcess::open(found->second.pid);
}

Result<GuestProcess> is_qemu_of(pid_t pid, const std::string& /*run_dir*/, const std::string& /*guest_name*/,
                                const std::string& guest_uuid) {
  const sim::Guest* guest = World::get().guest_of_pid(pid);
  if (guest == nullptr || guest->uuid != guest_uuid) return fail(ErrorCode::kRefused, "that is not the guest's QEMU");
  return GuestProcess::open(pid);
}

pid_t pid_for_itself(pid_t pid) { return pid; }

// No guest of this world has a QEMU that could be looked at, and no policy here wants one.
QemuWitness::QemuWitness(int /*stream*/, pid_t pid, std::string module_state, std::function<void(Result<void>)> done)
    : pid_(pid), module_state_(std::move(module_state)), done_(std::move(done)) {
  readable_ = run_after(0, [this] { end(look()); });
}
Result<void> QemuWitness::look() const { return fail(ErrorCode::kRefused, "there is no module"); }
void QemuWitness::end(const Result<void>& result) { std::exchange(done_, nullptr)(result); }

struct ExitWatch::State {
  std::shared_ptr<std::function<void()>> callback;
};

Result<ExitWatch> watch_exit(int pidfd, std::function<void()> callback) {
  const auto descriptor = std::dynamic_pointer_cast<PidDescriptor>(Kernel::get().descriptor(pidfd));
  if (!descriptor) return fail(ErrorCode::kInternal, "not a pidfd");
  ExitWatch watch;
  watch.state_ = std::make_shared<ExitWatch::State>();
  watch.state_->callback = std::make_shared<std::function<void()>>(std::move(callback));
  World::get().watch_process(descriptor->pid, Kernel::get().current(), watch.state_->callback);
  return watch;
}

// --- Guest sockets ---------------------------------------------------------------------------------

GuestSockets::GuestSockets(std::string run_dir, std::string libvirt_run_dir, std::function<void(GuestStream)> connected)
    : run_dir_(std::move(run_dir)), libvirt_run_dir_(std::move(libvirt_run_dir)), connected_(std::move(connected)) {
  World::get().this_host().guest_socket = [this](const std::string& guest_uuid, const std::string& device, int pid) {
    if (!sockets_.contains({guest_uuid, device})) return false;
    auto process = GuestProcess::open(pid);
    if (!process) return false;
    World& world = World::get();
    auto connection = std::make_shared<sim::GuestConnection>(guest_uuid, device);
    world.guest_by_uuid(guest_uuid)->connections[device] = connection;
    UniqueFd fd(Kernel::get().add_descriptor(connection));
    connected_(GuestStream{guest_uuid, device, std::move(fd), std::move(*process)});
    return true;
  };
}

GuestSockets::~GuestSockets() = default;

Result<void> GuestSockets::open(const std::string& guest_uuid, const std::string& guest_name,
                                const std::string& device) {
  sockets_[{guest_uuid, device}].guest_name = guest_name;
  return {};
}

void GuestSockets::close(const std::string& guest_uuid, const std::string& device) {
  sockets_.erase({guest_uuid, device});
}

// --- Endpoints -------------------------------------------------------------------------------------

namespace {

constexpr sim::Ns kConnectMax = 2 * kMs;

// A call that ends once, in the process that made it, or never when it is destroyed before.
template <typename T>
class PendingCall : public EndpointCall {
 public:
  explicit PendingCall(std::function<void(T)> done)
      : done_(std::make_shared<std::function<void(T)>>(std::move(done))) {}
  ~PendingCall() override { close_stream(); }

  void connect(const std::string& address, std::function<void(std::shared_ptr<sim::DeviceStream>, int)> connected,
               T refused) {
    Kernel& kernel = Kernel::get();
    kernel.after(kernel.chance().between(kMs / 10, kConnectMax), kernel.current(),
                 [this, address, connected = std::move(connected), refused = std::move(refused),
                  alive = std::weak_ptr(done_)]() mutable {
                   if (alive.expired()) return;
                   const auto found = World::get().devices().find(address.substr(address.rfind('/') + 1));
                   auto stream = found == World::get().devices().end()
                                     ? nullptr
                                     : found->second->connect(Kernel::get().current());
                   if (!stream) return end(std::move(refused));
                   fd_ = Kernel::get().add_descriptor(stream);
                   connected(stream, fd_);
                 });
  }
  void time_out(std::uint32_t timeout_ms, T result) {
    Kernel& kernel = Kernel::get();
    kernel.after(timeout_ms * kMs, kernel.current(),
                 [this, result = std::move(result), alive = std::weak_ptr(done_)]() mutable {
                   if (!alive.expired()) end(std::move(result));
                 });
  }
  void end(T result) {
    if (!done_) return;
    const auto done = std::exchange(done_, nullptr);
    (*done)(std::move(result));
  }
  int release_stream() { return std::exchange(fd_, -1); }
  void close_stream() {
    if (fd_ >= 0) Kernel::get().close_descriptor(std::exchange(fd_, -1));
  }
  [[nodiscard]] std::weak_ptr<std::function<void(T)>> alive() const { return done_; }

 private:
  std::shared_ptr<std::function<void(T)>> done_;
  int fd_ = -1;
};

using Probe = PendingCall<Result<EndpointDevice>>;

}  // namespace

std::unique_ptr<EndpointCall> connect_endpoint(const std::string& address, std::uint32_t /*timeout_ms*/,
                                               std::function<void(Result<UniqueFd>)> done) {
  auto call = std::make_unique<PendingCall<std::shared_ptr<Result<UniqueFd>>>>(
      [done = std::move(done)](const std::shared_ptr<Result<UniqueFd>>& result) { done(std::move(*result)); });
  auto* const raw = call.get();
  call->connect(
      address,
      [raw](const std::shared_ptr<sim::DeviceStream>& /*stream*/, int /*fd*/) {
        raw->end(std::make_shared<Result<UniqueFd>>(UniqueFd(raw->release_stream())));
      },
      std::make_shared<Result<UniqueFd>>(fail(ErrorCode::kUnavailable, "nobody listens at " + address)));
  return call;
}

std::unique_ptr<EndpointCall> probe_endpoint(const std::string& address, std::uint32_t timeout_ms,
                                             std::function<void(Result<EndpointDevice>)> done) {
  auto call = std::make_unique<Probe>(std::move(done));
  Probe* const raw = call.get();
  call->time_out(timeout_ms, fail(ErrorCode::kTimedOut, address + " says nothing"));
  call->connect(
      address,
      [raw](const std::shared_ptr<sim::DeviceStream>& stream, int /*fd*/) {
        stream->on_end([raw, alive = raw->alive()] {
          if (!alive.expired()) raw->end(EndpointDevice{"simulated", 0x1234, 0});
        });
        // Hello and the device, then our own end, then the endpoint's.
        stream->on_hello(Kernel::get().current(), [raw, alive = raw->alive()] {
          if (!alive.expired()) raw->close_stream();
        });
      },
      fail(ErrorCode::kUnavailable, "nobody listens at " + address));
  return call;
}

// --- Relays ----------------------------------------------------------------------------------------

class Relays::Link {
 public:
  Link(Relays* relays, Key key, sim::RelayProcess* relay) : relays_(relays), key_(std::move(key)), relay_(relay) {
    if (relay_ == nullptr || !relay_->alive()) {
      lose();
      return;
    }
    relay_->connect(
        Kernel::get().current(),
        [this, alive = std::weak_ptr(alive_)](const std::string& bytes) {
          if (!alive.expired()) hear(bytes);
        },
        [this, alive = std::weak_ptr(alive_)] {
          if (!alive.expired()) lose();
        });
  }
  ~Link() {
    if (relay_ != nullptr) relay_->disconnect(process_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void tell(const relay::ToRelay& message) {
    if (relay_ != nullptr && relay_->alive()) relay_->hear(message.SerializeAsString());
  }
  [[nodiscard]] bool awaits_hello() const { return !said_hello_; }

 private:
  void lose() {
    later_ = run_after(0, [this] { relays_->remove(key_, !fenced_); });
  }
  void hear(const std::string& bytes) {
    relay::ToDaemon message;
    if (!message.ParseFromString(bytes)) return Kernel::get().fail("a relay said what is no relay message");
    const auto [device, token] = key_;
    const RelayEvents& events = relays_->events_;
    if (message.has_hello() && !std::exchange(said_hello_, true)) {
      relays_->finish_adopting();
      events.hello(message.hello());
    } else if (message.has_connected() && !std::exchange(connected_, true)) {
      events.connected(device, token);
    } else if (message.has_device_seen() && !std::exchange(seen_, true)) {
      events.device_seen(device, token, message.device_seen());
    } else if (message.has_ended() && !std::exchange(ended_, true)) {
      events.ended(device, token, message.ended());
    } else if (message.has_fenced() && !std::exchange(fenced_, true)) {
      events.fenced(device, token);
    }
  }

  Relays* relays_;
  Key key_;
  sim::RelayProcess* relay_;
  sim::Process* process_ = Kernel::get().current();
  SourceHandle later_;
  bool said_hello_ = false;
  bool connected_ = false;
  bool seen_ = false;
  bool ended_ = false;
  bool fenced_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

Relays::Relays(RelayOptions options, RelayEvents events) : options_(std::move(options)), events_(std::move(events)) {}
Relays::~Relays() = default;

Relays::Link* Relays::find(const std::string& device, std::uint64_t token) const {
  const auto at = links_.find({device, token});
  return at == links_.end() ? nullptr : at->second.get();
}

void Relays::remove(Key key, bool lost) {
  if (links_.erase(key) == 0) return;
  sim::HostState& host = World::get().this_host();
  const auto at = host.relays.find(key);
  if (at != host.relays.end() && !at->second->alive()) {
    host.gone_relays.push_back(std::move(at->second));
    host.relays.erase(at);
  }
  finish_adopting();
  if (lost) events_.lost(key.first, key.second);
}

void Relays::adopt(std::function<void()> done) {
  adopted_ = std::move(done);
  for (const auto& [key, relay] : World::get().this_host().relays)
    links_[key] = std::make_unique<Link>(this, key, relay.get());
  adopt_timeout_ = run_after(2'000 * kMs, [this] {
    if (const auto callback = std::exchange(adopted_, nullptr)) callback();
  });
  finish_adopting();
}

void Relays::finish_adopting() {
  if (!adopted_) return;
  for (const auto& [key, link] : links_) {
    if (link->awaits_hello()) return;
  }
  adopt_timeout_ = run_after(0, [this] {
    if (const auto callback = std::exchange(adopted_, nullptr)) callback();
  });
}

Result<void> Relays::spawn(RelayStart start) {
  const Key key{start.device, start.token};
  if (find(start.device, start.token) != nullptr) return fail(ErrorCode::kRefused, "such a relay runs already");
  Kernel& kernel = Kernel::get();
  sim::HostState& host = World::get().this_host();
  sim::Process& process = kernel.add_process(
      *host.machine, host.machine->id + "/relay:" + start.device + "." + std::to_string(start.token));
  auto& relay = host.relays[key];
  relay = std::make_unique<sim::RelayProcess>(
      kernel, process,
      sim::RelayProcess::Start{start.device, start.token, start.guest_uuid, start.instance, start.peer_pid,
                               start.deadline_ns, start.guest.release(), start.endpoint.release()});
  links_[key] = std::make_unique<Link>(this, key, relay.get());
  return {};
}

void Relays::renew(const std::string& device, std::uint64_t token, std::uint64_t deadline_ns) {
  relay::ToRelay message;
  message.mutable_renew()->set_token(token);
  message.mutable_renew()->set_deadline_ns(deadline_ns);
  if (Link* link = find(device, token)) link->tell(message);
}

void Relays::revoke(const std::string& device, std::uint64_t token) {
  relay::ToRelay message;
  message.mutable_revoke()->set_token(token);
  if (Link* link = find(device, token)) link->tell(message);
}

void Relays::acknowledge(const std::string& device, std::uint64_t token) {
  relay::ToRelay message;
  message.mutable_ack()->set_token(token);
  if (Link* link = find(device, token)) link->tell(message);
}

bool Relays::has(const std::string& device, std::uint64_t token) const { return find(device, token) != nullptr; }

bool Relays::has_any(const std::string& device) const {
  const auto first = links_.lower_bound({device, 0});
  return first != links_.end() && first->first.first == device;
}

std::size_t Relays::count() const { return links_.size(); }

}  // namespace usblease::host

// --- Lease pages -----------------------------------------------------------------------------------

namespace usblease::lease_page {

using sim::World;

std::string redir_page_path(const std::string& /*run_dir*/, const std::string& guest_uuid, const std::string& device) {
  return "redir-" + guest_uuid + "-" + device;
}

Result<void> make_directory(const std::string& /*run_dir*/) { return {}; }

Result<std::vector<std::string>> list_pages(const std::string& /*run_dir*/) {
  std::vector<std::string> names;
  for (const auto& [name, slot] : World::get().this_host().pages) names.push_back(name);
  return names;
}

Result<Id> id_from_uuid(const std::string& uuid) {
  Id id{};
  for (std::size_t at = 0; at < id.size() && at < uuid.size(); ++at) id[at] = static_cast<std::uint8_t>(uuid[at]);
  return id;
}

Result<Writer> Writer::open(std::string path) {
  auto& pages = World::get().this_host().pages;
  const auto found = pages.find(path);
  if (found != pages.end()) return Writer(std::move(path), UniqueFd(), found->second);
  UsbLeaseSlot first{};
  first.state = USB_LEASE_FREE;
  first.epoch = 1;
  first.generation = 2;
  pages[path] = first;
  return Writer(std::move(path), UniqueFd(), first);
}

Result<void> Writer::write_next(UsbLeaseSlot next) {
  next.generation = now_.generation + 1;
  World::get().this_host().pages[path_] = now_ = next;
  return {};
}

Result<void> Writer::write_both(const UsbLeaseSlot& next) { return write_next(next); }

// What the real one refuses would be a fault of its caller here.
Result<void> Writer::grant(const Grant& grant) {
  if (grant.token <= now_.token) sim::Kernel::get().fail("a lease page was to grant an old token");
  UsbLeaseSlot next = now_;
  next.state = USB_LEASE_GRANTED;
  next.token = grant.token;
  next.deadline_ns = grant.deadline_ns;
  std::copy(grant.guest.begin(), grant.guest.end(), next.guest);
  std::copy(grant.start.begin(), grant.start.end(), next.start);
  next.pid = 0;
  return write_next(next);
}

Result<void> Writer::renew(std::uint64_t deadline_ns) {
  if (now_.state != USB_LEASE_GRANTED || deadline_ns < now_.deadline_ns)
    sim::Kernel::get().fail("a lease page was to be renewed that grants nothing, or to an earlier deadline");
  UsbLeaseSlot next = now_;
  next.deadline_ns = deadline_ns;
  return write_next(next);
}

Result<void> Writer::bind(std::uint32_t pid) {
  UsbLeaseSlot next = now_;
  next.pid = pid;
  return write_next(next);
}

Result<void> Writer::revoke() {
  if (now_.state != USB_LEASE_GRANTED) return {};
  UsbLeaseSlot next = now_;
  next.state = USB_LEASE_REVOKED;
  return write_next(next);
}

Result<void> Writer::remove() {
  World::get().this_host().pages.erase(path_);
  return {};
}

}  // namespace usblease::lease_page
