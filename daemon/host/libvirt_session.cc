#include "daemon/host/libvirt_session.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/text.h"
#include "daemon/host/guest_process.h"
#include "daemon/host/guest_xml.h"

namespace usblease::host {

// What libvirt's C callbacks reach; each registration for events holds a reference, given back by libvirt when it is
// sure not to call any more.
class LibvirtSession::Callbacks {
 public:
  Callbacks(SessionEvents events, std::shared_ptr<Removals> removals)
      : events_(std::move(events)), removals_(std::move(removals)) {}

  static void* reference(const std::shared_ptr<Callbacks>& callbacks) {
    return std::make_unique<std::shared_ptr<Callbacks>>(callbacks).release();
  }
  static void free_reference(void* opaque) {
    const std::unique_ptr<std::shared_ptr<Callbacks>> owner(static_cast<std::shared_ptr<Callbacks>*>(opaque));
  }
  static Callbacks& of(void* opaque) { return **static_cast<std::shared_ptr<Callbacks>*>(opaque); }

  static int lifecycle(virConnectPtr /*connection*/, virDomainPtr domain, int event, int /*detail*/, void* opaque) {
    if (event == VIR_DOMAIN_EVENT_STARTED || event == VIR_DOMAIN_EVENT_STOPPED || event == VIR_DOMAIN_EVENT_CRASHED) {
      of(opaque).events_.guest_changed(uuid_of(domain));
    }
    return 0;
  }

  static void device_removed(virConnectPtr /*connection*/, virDomainPtr domain, const char* alias, void* opaque) {
    Callbacks& self = of(opaque);
    self.removals_->note();
    if (auto device = device_of_alias(alias)) self.events_.device_removed(uuid_of(domain), std::move(*device));
  }

  static void closed(virConnectPtr /*connection*/, int reason, void* opaque) {
    const char* why = "closed by us";
    if (reason == VIR_CONNECT_CLOSE_REASON_ERROR) why = "an I/O error";
    if (reason == VIR_CONNECT_CLOSE_REASON_EOF) why = "libvirt ended it";
    if (reason == VIR_CONNECT_CLOSE_REASON_KEEPALIVE) why = "libvirt did not answer any more";
    const auto* self = static_cast<Callbacks*>(opaque);
    self->removals_->note();
    self->events_.broken(why);
  }

  static std::string uuid_of(virDomainPtr domain) {
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    virDomainGetUUIDString(domain, uuid);
    return uuid;
  }

 private:
  const SessionEvents events_;
  const std::shared_ptr<Removals> removals_;
};

std::uint64_t Removals::count() {
  const std::lock_guard lock(mutex_);
  return count_;
}

void Removals::note() {
  const std::lock_guard lock(mutex_);
  ++count_;
  changed_.notify_all();
}

void Removals::wait(std::uint64_t seen, std::chrono::milliseconds bound) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, bound, [&] { return count_ != seen; });
}

namespace {

// A frozen libvirtd is given up after about 20 s.
constexpr int kKeepaliveIntervalS = 5;
constexpr unsigned int kKeepaliveCount = 3;

// QEMU unplugs USB without asking the guest: 50 to 70 ms. It takes longer only when its main loop hangs.
constexpr std::chrono::milliseconds kUnplugBound{10'000};
constexpr std::chrono::milliseconds kUnplugLookAgain{500};  // in case an event was missed

tl::unexpected<Error> bad_device(const std::string& device) {
  return fail(ErrorCode::kBadInput, "\"" + escape_text(device.substr(0, 64)) + "\" is not a device name");
}

std::string quoted(const std::string& name) { return escape_text(name.substr(0, 255)); }

std::string name_of(virDomainPtr domain) {
  const char* const name = virDomainGetName(domain);
  return quoted(name != nullptr ? name : "?");
}

std::string version_text(unsigned long version) {
  return std::to_string(version / 1'000'000) + "." + std::to_string(version / 1000 % 1000) + "." +
         std::to_string(version % 1000);
}

// Changes the list as asked; false when it was so already.
Result<bool> change(std::vector<Assignment>& assignments, const Assignment& wanted, bool remove) {
  const auto found = std::find_if(assignments.begin(), assignments.end(),
                                  [&](const Assignment& a) { return a.device == wanted.device; });
  if (remove) {
    if (found == assignments.end()) return false;
    assignments.erase(found);
    return true;
  }
  if (found != assignments.end()) {
    if (found->required == wanted.required && found->wait_s == wanted.wait_s) return false;
    *found = wanted;
    return true;
  }
  if (assignments.size() >= kAssignmentsMax) {
    return fail(ErrorCode::kRefused, "it has " + std::to_string(kAssignmentsMax) +
                                         " devices assigned, the most that are allowed; unassign one first");
  }
  assignments.push_back(wanted);
  return true;
}

const char* target_option(unsigned int target) { return target == VIR_DOMAIN_AFFECT_LIVE ? "--live" : "--config"; }

}  // namespace

Result<std::unique_ptr<LibvirtSession>> LibvirtSession::open(const std::string& uri, const std::string& run_dir,
                                                             std::shared_ptr<Removals> removals,
                                                             std::optional<SessionEvents> events) {
  const virConnectPtr connection = virConnectOpen(uri.c_str());
  if (connection == nullptr) {
    Error away = libvirt_error("cannot connect to " + uri);
    away.code = ErrorCode::kUnavailable;
    return tl::unexpected(std::move(away));
  }
  std::unique_ptr<LibvirtSession> session(new LibvirtSession(connection));
  session->run_dir_ = run_dir;
  session->removals_ = std::move(removals);
  // Local drivers (test:///) do not know it: they cannot break.
  virConnectSetKeepAlive(connection, kKeepaliveIntervalS, kKeepaliveCount);
  session->describe(uri);
  if (!events) return session;
  if (auto subscribed = session->subscribe(std::move(*events)); !subscribed) {
    return tl::unexpected(subscribed.error());
  }
  return session;
}

Result<void> LibvirtSession::subscribe(SessionEvents events) {
  callbacks_ = std::make_shared<Callbacks>(std::move(events), removals_);
  // No reference of its own: a driver that does not know close callbacks takes it, says success, and never gives it
  // back.
  virConnectRegisterCloseCallback(connection_, Callbacks::closed, callbacks_.get(), nullptr);
  const std::pair<int, virConnectDomainEventGenericCallback> wanted[] = {
      {VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(Callbacks::lifecycle)},
      {VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, VIR_DOMAIN_EVENT_CALLBACK(Callbacks::device_removed)}};
  for (const auto& [event, callback] : wanted) {
    void* const opaque = Callbacks::reference(callbacks_);
    const int id =
        virConnectDomainEventRegisterAny(connection_, nullptr, event, callback, opaque, Callbacks::free_reference);
    if (id < 0) {
      Callbacks::free_reference(opaque);
      return tl::unexpected(error("cannot hear the events of libvirt"));
    }
    callback_ids_.push_back(id);
  }
  return {};
}

LibvirtSession::~LibvirtSession() {
  // Each of them holds a reference to the connection.
  for (const int id : callback_ids_) virConnectDomainEventDeregisterAny(connection_, id);
  // Waits for one that is under way; callbacks_ goes only after this.
  if (callbacks_) virConnectUnregisterCloseCallback(connection_, Callbacks::closed);
  virConnectClose(connection_);
}

void LibvirtSession::describe(const std::string& uri) {
  description_ = uri;
  unsigned long version = 0;
  if (virConnectGetLibVersion(connection_, &version) == 0) description_ += ", libvirt " + version_text(version);
  const char* const type = virConnectGetType(connection_);
  if (type != nullptr && virConnectGetVersion(connection_, &version) == 0 && version > 0) {
    description_ += ", " + escape_text(type) + " " + version_text(version);
  }
}

bool LibvirtSession::is_alive() { return virConnectIsAlive(connection_) == 1; }

Error LibvirtSession::error(const std::string& what) {
  Error result = libvirt_error(what);
  if (!is_alive()) result.code = ErrorCode::kUnavailable;
  return result;
}

Result<DomainPtr> LibvirtSession::look_up(const std::string& name_or_uuid) {
  if (name_or_uuid.empty() || name_or_uuid.size() > 255 || name_or_uuid.find('\0') != std::string::npos) {
    return fail(ErrorCode::kBadInput, "\"" + quoted(name_or_uuid) + "\" is not the name of a guest");
  }
  DomainPtr domain;
  if (const auto uuid = parse_uuid(name_or_uuid)) {
    domain.reset(virDomainLookupByUUIDString(connection_, uuid->c_str()));
  }
  // A name may look like a UUID.
  if (domain == nullptr) domain.reset(virDomainLookupByName(connection_, name_or_uuid.c_str()));
  if (domain != nullptr) return domain;
  if (libvirt_error_code() == VIR_ERR_NO_DOMAIN) {
    return fail(ErrorCode::kNotFound,
                "there is no guest " + quoted(name_or_uuid) + " on this host; see virsh list --all");
  }
  return tl::unexpected(error("cannot look up guest " + quoted(name_or_uuid)));
}

Guest LibvirtSession::describe_guest(virDomainPtr domain) {
  Guest guest;
  guest.uuid = Callbacks::uuid_of(domain);
  const char* const name = virDomainGetName(domain);
  guest.name = name != nullptr ? name : "";
  guest.domain_id = static_cast<int>(virDomainGetID(domain));  // as it was looked up
  guest.running = guest.domain_id != -1;
  if (!guest.running) return guest;
  if (const auto process = qemu_of(run_dir_, guest.name)) guest.pid = process->pid();
  const MallocString xml(virDomainGetXMLDesc(domain, 0));
  if (xml == nullptr) return guest;  // has just ended, or libvirt has: an event follows
  auto devices = attached_devices(xml.get());
  if (devices) {
    guest.attached = std::move(*devices);
  } else {
    log::warning("cannot see the devices of a guest", {{"GUEST", guest.name}, {"ERROR", devices.error().message}});
  }
  return guest;
}

Result<Guest> LibvirtSession::find_guest(const std::string& name_or_uuid) {
  const auto domain = look_up(name_or_uuid);
  if (!domain) return tl::unexpected(domain.error());
  return describe_guest(domain->get());
}

Result<std::vector<Guest>> LibvirtSession::list_guests() {
  virDomainPtr* raw = nullptr;
  const int count = virConnectListAllDomains(connection_, &raw, 0);
  if (count < 0) return tl::unexpected(error("cannot list the guests"));
  const std::unique_ptr<virDomainPtr, MallocFree> array(raw);
  std::vector<DomainPtr> domains;
  domains.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) domains.emplace_back(raw[i]);
  std::vector<Guest> guests;
  guests.reserve(domains.size());
  for (const auto& domain : domains) guests.push_back(describe_guest(domain.get()));
  // Half a list would say that guests have stopped.
  if (!is_alive()) return fail(ErrorCode::kUnavailable, "cannot list the guests: the connection to libvirt broke");
  return guests;
}

Result<void> LibvirtSession::attach_endpoint(const std::string& uuid, const std::string& device,
                                             const std::string& socket_path) {
  return attach(uuid, device, redirdev_xml(device, socket_path));
}

Result<void> LibvirtSession::attach_usb(const std::string& uuid, const std::string& device, UsbAddress address) {
  return attach(uuid, device, hostdev_xml(device, address.bus, address.device));
}

Result<void> LibvirtSession::attach(const std::string& uuid, const std::string& device, const std::string& xml) {
  if (!is_device_name(device)) return bad_device(device);
  const auto domain = look_up(uuid);
  if (!domain) return tl::unexpected(domain.error());
  const std::string name = name_of(domain->get());
  if (virDomainIsActive(domain->get()) == 0) {
    return fail(ErrorCode::kRefused, "guest " + name + " does not run; start it, or use usblease assign");
  }
  if (virDomainAttachDeviceFlags(domain->get(), xml.c_str(), VIR_DOMAIN_AFFECT_LIVE) == 0) return {};
  return tl::unexpected(error("cannot attach " + device + " to guest " + name));
}

Result<void> LibvirtSession::destroy(const std::string& uuid) {
  const auto domain = look_up(uuid);
  if (!domain && domain.error().code == ErrorCode::kNotFound) return {};
  if (!domain) return tl::unexpected(domain.error());
  if (virDomainIsActive(domain->get()) == 0 || virDomainDestroy(domain->get()) == 0) return {};
  return tl::unexpected(error("cannot destroy guest " + name_of(domain->get())));
}

bool LibvirtSession::shows(virDomainPtr domain, const Shown& shown) {
  if (virDomainIsActive(domain) == 0) return false;
  const MallocString xml(virDomainGetXMLDesc(domain, 0));
  if (xml == nullptr) return libvirt_error_code() != VIR_ERR_NO_DOMAIN;
  return shown(xml.get());
}

bool LibvirtSession::wait_until_gone(virDomainPtr domain, const Shown& shown, std::chrono::milliseconds bound) {
  const auto until = std::chrono::steady_clock::now() + bound;
  for (;;) {
    const std::uint64_t seen = removals_->count();
    if (!shows(domain, shown)) return true;
    if (std::chrono::steady_clock::now() >= until || !is_alive()) return false;
    removals_->wait(seen, kUnplugLookAgain);
  }
}

Result<void> LibvirtSession::take_out(const std::string& uuid, const std::string& device, const Shown& shown,
                                      const std::function<int(virDomainPtr)>& ask) {
  const auto domain = look_up(uuid);
  if (!domain && domain.error().code == ErrorCode::kNotFound) return {};
  if (!domain) return tl::unexpected(domain.error());
  if (!shows(domain->get(), shown)) return {};
  const std::string what = "cannot detach " + device + " from guest " + name_of(domain->get());
  // Returns before QEMU has unplugged it.
  std::optional<Error> refused;
  if (ask(domain->get()) != 0) {
    refused = error(what);
    if (refused->code == ErrorCode::kUnavailable) return tl::unexpected(*refused);
  }
  // A refusal may mean that it is on its way out already, or gone by now.
  if (wait_until_gone(domain->get(), shown, refused ? kUnplugLookAgain : kUnplugBound)) return {};
  if (refused) return tl::unexpected(*refused);
  if (!is_alive()) return fail(ErrorCode::kUnavailable, what + ": the connection to libvirt broke");
  return fail(ErrorCode::kTimedOut, what + ": QEMU has not unplugged it; if it hangs, virsh destroy ends it");
}

Result<void> LibvirtSession::detach(const std::string& uuid, const std::string& device) {
  const auto shown = [&](const std::string& xml) {
    const auto devices = attached_devices(xml);
    return !devices || std::find(devices->begin(), devices->end(), device) != devices->end();
  };
  return take_out(uuid, device, shown, [&](virDomainPtr domain) {
    return virDomainDetachDeviceAlias(domain, device_alias(device).c_str(), VIR_DOMAIN_AFFECT_LIVE);
  });
}

Result<void> LibvirtSession::detach_usb(const std::string& uuid, UsbAddress address) {
  const std::string where = "USB device " + std::to_string(address.bus) + ":" + std::to_string(address.device);
  const auto shown = [&](const std::string& xml) { return has_hostdev_at(xml, address.bus, address.device); };
  return take_out(uuid, where, shown, [&](virDomainPtr domain) {
    const std::string xml = hostdev_xml("", address.bus, address.device);
    return virDomainDetachDeviceFlags(domain, xml.c_str(), VIR_DOMAIN_AFFECT_LIVE);
  });
}

Result<std::vector<Assignment>> LibvirtSession::read_assignments(virDomainPtr domain, unsigned int target) {
  const MallocString xml(virDomainGetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, kMetadataNamespace, target));
  if (xml == nullptr) {
    if (libvirt_error_code() == VIR_ERR_NO_DOMAIN_METADATA) return std::vector<Assignment>();
    return tl::unexpected(error("cannot read the metadata of guest " + name_of(domain)));
  }
  auto assignments = parse_assignments(xml.get());
  if (assignments) return assignments;
  const std::string name = name_of(domain);
  return fail(ErrorCode::kBadInput, "guest " + name + ": " + assignments.error().message + ". Correct it with virsh" +
                                        " edit " + name + ", or take it all away with: virsh metadata " + name + " " +
                                        kMetadataNamespace + " --remove " + target_option(target));
}

Result<void> LibvirtSession::write_assignments(virDomainPtr domain, unsigned int target,
                                               const std::vector<Assignment>& assignments) {
  const std::string xml = format_assignments(assignments);
  if (virDomainSetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, assignments.empty() ? nullptr : xml.c_str(),
                           kMetadataPrefix, kMetadataNamespace, target) == 0) {
    return {};
  }
  return tl::unexpected(error("cannot write the metadata of guest " + name_of(domain)));
}

Result<bool> LibvirtSession::assign(const std::string& guest, const Assignment& assignment, bool remove) {
  if (!is_device_name(assignment.device)) return bad_device(assignment.device);
  if (assignment.wait_s > kAssignmentWaitMaxS) {
    return fail(ErrorCode::kBadInput, "a guest may wait at most " + std::to_string(kAssignmentWaitMaxS) + " s");
  }
  const auto domain = look_up(guest);
  if (!domain) return tl::unexpected(domain.error());
  std::vector<unsigned int> targets;
  if (virDomainIsPersistent(domain->get()) == 1) targets.push_back(VIR_DOMAIN_AFFECT_CONFIG);
  if (virDomainIsActive(domain->get()) == 1) targets.push_back(VIR_DOMAIN_AFFECT_LIVE);
  if (targets.empty()) return tl::unexpected(error("cannot assign to guest " + name_of(domain->get())));
  // All are read and checked before one is written.
  std::vector<std::pair<unsigned int, std::vector<Assignment>>> writes;
  for (const unsigned int target : targets) {
    auto assignments = read_assignments(domain->get(), target);
    if (!assignments) return tl::unexpected(assignments.error());
    const auto changed = change(*assignments, assignment, remove);
    if (!changed) {
      return fail(changed.error().code, "guest " + name_of(domain->get()) + ": " + changed.error().message);
    }
    if (*changed) writes.emplace_back(target, std::move(*assignments));
  }
  for (const auto& [target, assignments] : writes) {
    if (auto written = write_assignments(domain->get(), target, assignments); !written) {
      return tl::unexpected(written.error());
    }
  }
  return !writes.empty();
}

}  // namespace usblease::host
