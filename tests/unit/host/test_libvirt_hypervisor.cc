// The hypervisor on libvirt's built-in test driver: connect, look up, list, metadata, lifecycle. What the test driver
// cannot do (attach, a libvirtd that goes away) is in tests/hypervisor.
#include <optional>
#include <thread>

#include "common/boottime.h"
#include "daemon/host/libvirt_events.h"
#include "daemon/host/libvirt_hypervisor.h"
#include "daemon/host/libvirt_ptr.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::expect_code;
using test::run_until;

constexpr const char* kUri = "test:///default";
constexpr const char* kUuid = "6695eb01-f6a4-8304-79aa-97f2502e193f";  // of the test driver's one guest

// A second connection to the same driver, as virsh would have one.
class Virsh {
 public:
  Virsh() {
    ck_assert(prepare_libvirt().has_value());
    connection_ = virConnectOpen(kUri);
    ck_assert_ptr_nonnull(connection_);
    domain_.reset(virDomainLookupByName(connection_, "test"));
    ck_assert_ptr_nonnull(domain_.get());
  }
  Virsh(const Virsh&) = delete;
  Virsh& operator=(const Virsh&) = delete;
  ~Virsh() {
    domain_.reset();
    virConnectClose(connection_);
  }
  virDomainPtr operator*() const { return domain_.get(); }
  std::string metadata(unsigned int target) const {
    const MallocString xml(
        virDomainGetMetadata(domain_.get(), VIR_DOMAIN_METADATA_ELEMENT, kMetadataNamespace, target));
    return xml != nullptr ? xml.get() : "";
  }

 private:
  virConnectPtr connection_ = nullptr;
  DomainPtr domain_;
};

template <typename T>
struct Answer {
  std::optional<Result<T>> result;
  Hypervisor::Done<T> done() {
    return [this](Result<T> value) {
      ck_assert(!result.has_value());
      result = std::move(value);
    };
  }
  const Result<T>& wait() {
    ck_assert(run_until([&] { return result.has_value(); }));
    return *result;
  }
};

struct Host {
  // A line an event, to be compared.
  std::string trace;
  std::vector<Guest> all;
  std::thread::id thread = std::this_thread::get_id();
  std::unique_ptr<Hypervisor> hypervisor;

  explicit Host(const std::string& uri) : hypervisor(make_libvirt_hypervisor({uri, "/nonexistent"})) {
    HypervisorEvents events;
    events.connected = [this](std::vector<Guest> guests) {
      all = std::move(guests);
      note("connected");
    };
    events.disconnected = [this](const std::string& /*why*/) { note("disconnected"); };
    events.guest_started = [this](const Guest& guest) { note("started " + guest.name); };
    events.guest_stopped = [this](const std::string& uuid) { note("stopped " + uuid); };
    events.device_removed = [this](const std::string&, const std::string& device) { note("removed " + device); };
    hypervisor->start(std::move(events));
  }
  void note(const std::string& line) {
    ck_assert(std::this_thread::get_id() == thread);
    trace += line + "\n";
  }
  void wait_for(const std::string& lines) {
    const bool came = run_until([&] { return trace == lines; }, 5000);
    ck_assert_msg(came, "expected:\n%s\ngot:\n%s", lines.c_str(), trace.c_str());
  }
  Result<Guest> find(const std::string& name) {
    Answer<Guest> answer;
    hypervisor->find_guest(name, answer.done());
    return answer.wait();
  }
  Result<bool> assign(const Assignment& assignment, bool remove = false) {
    Answer<bool> answer;
    hypervisor->assign("test", assignment, remove, answer.done());
    return answer.wait();
  }
};

START_TEST(connects_and_looks_up) {
  Host host(kUri);
  ck_assert(!host.hypervisor->is_connected());
  host.wait_for("connected\n");
  ck_assert(host.hypervisor->is_connected());
  ck_assert(host.hypervisor->describe().rfind(kUri, 0) == 0);
  ck_assert_uint_eq(host.all.size(), 1);
  for (const std::string name : {"test", kUuid, "6695EB01-f6a4-8304-79aa-97f2502e193f"}) {
    const auto guest = host.find(name);
    ck_assert(guest.has_value());
    test::expect_text(guest->uuid, kUuid);
    test::expect_text(guest->name, "test");
    ck_assert(guest->running);
    ck_assert_int_eq(guest->domain_id, 1);
    ck_assert_int_eq(guest->pid, 0);  // there is no QEMU
  }
  expect_code(host.find("nobody").error(), ErrorCode::kNotFound, "there is no guest nobody");
  expect_code(host.find("no\x1b[1mbody").error(), ErrorCode::kNotFound, "no\\x1B[1mbody");
  expect_code(host.find("").error(), ErrorCode::kBadInput, "not the name");
  expect_code(host.find(std::string(300, 'x')).error(), ErrorCode::kBadInput, "not the name");
  Answer<std::vector<Guest>> list;
  host.hypervisor->list_guests(list.done());
  ck_assert_uint_eq(list.wait()->size(), 1);
}
END_TEST

START_TEST(hears_starts_and_stops) {
  const Virsh virsh;
  Host host(kUri);
  host.wait_for("connected\n");
  const std::string stopped = std::string("stopped ") + kUuid + "\n";
  ck_assert_int_eq(virDomainDestroy(*virsh), 0);
  host.wait_for("connected\n" + stopped);
  const auto guest = host.find("test");
  ck_assert(!guest->running);
  ck_assert_int_eq(guest->domain_id, -1);
  ck_assert_int_eq(virDomainCreate(*virsh), 0);
  host.wait_for("connected\n" + stopped + "started test\n");
  // Suspending is neither.
  ck_assert_int_eq(virDomainSuspend(*virsh), 0);
  ck_assert_int_eq(virDomainResume(*virsh), 0);
  ck_assert_int_eq(virDomainDestroy(*virsh), 0);
  host.wait_for("connected\n" + stopped + "started test\n" + stopped);
}
END_TEST

START_TEST(assigns) {
  const Virsh virsh;
  Host host(kUri);
  host.wait_for("connected\n");
  ck_assert(*host.assign({"dongle", false, 30}));
  ck_assert(!*host.assign({"dongle", false, 30}));
  ck_assert(*host.assign({"hsm"}));
  ck_assert(*host.assign({"dongle", true, 30}));
  for (const unsigned int target : {VIR_DOMAIN_AFFECT_CONFIG, VIR_DOMAIN_AFFECT_LIVE}) {
    const auto assignments = parse_assignments(virsh.metadata(target));
    ck_assert(assignments.has_value());
    ck_assert_uint_eq(assignments->size(), 2);
    test::expect_text(assignments->at(0).device, "dongle");
    ck_assert(assignments->at(0).required);
    ck_assert_uint_eq(assignments->at(0).wait_s, 30);
  }
  const MallocString xml(virDomainGetXMLDesc(*virsh, 0));
  ck_assert_ptr_nonnull(strstr(xml.get(), "<usblease:devices xmlns:usblease=\"urn:usblease:domain:1\">"));
  ck_assert(!*host.assign({"other"}, true));
  ck_assert(*host.assign({"dongle"}, true));
  ck_assert(*host.assign({"hsm"}, true));
  ck_assert(!*host.assign({"hsm"}, true));
  test::expect_text(virsh.metadata(VIR_DOMAIN_AFFECT_CONFIG), "");  // the last one takes the element with it
  test::expect_text(virsh.metadata(VIR_DOMAIN_AFFECT_LIVE), "");
}
END_TEST

START_TEST(assigns_what_there_is) {
  const Virsh virsh;
  Host host(kUri);
  host.wait_for("connected\n");
  // Not running: for its next start.
  ck_assert_int_eq(virDomainDestroy(*virsh), 0);
  ck_assert(*host.assign({"dongle"}));
  ck_assert_int_eq(virDomainCreate(*virsh), 0);
  ck_assert(!virsh.metadata(VIR_DOMAIN_AFFECT_LIVE).empty());
  // Transient: for this start.
  ck_assert_int_eq(virDomainUndefine(*virsh), 0);
  ck_assert(*host.assign({"dongle"}, true));
  test::expect_text(virsh.metadata(VIR_DOMAIN_AFFECT_LIVE), "");
}
END_TEST

START_TEST(bad_assignments) {
  const Virsh virsh;
  Host host(kUri);
  host.wait_for("connected\n");
  expect_code(host.assign({"Bad"}).error(), ErrorCode::kBadInput, "device name");
  expect_code(host.assign({"dongle", true, 9999}).error(), ErrorCode::kBadInput, "3600");
  for (int i = 0; i < 16; ++i) ck_assert(*host.assign({"d" + std::to_string(i)}));
  expect_code(host.assign({"d16"}).error(), ErrorCode::kRefused, "unassign one first");
  ck_assert_int_eq(virDomainSetMetadata(*virsh, VIR_DOMAIN_METADATA_ELEMENT, "<devices><device nmae='a'/></devices>",
                                        kMetadataPrefix, kMetadataNamespace, VIR_DOMAIN_AFFECT_LIVE),
                   0);
  const std::string before = virsh.metadata(VIR_DOMAIN_AFFECT_CONFIG);
  const Error error = host.assign({"d0"}, true).error();
  expect_code(error, ErrorCode::kBadInput, "nmae");
  expect_code(error, ErrorCode::kBadInput, "virsh metadata test urn:usblease:domain:1 --remove --live");
  test::expect_text(virsh.metadata(VIR_DOMAIN_AFFECT_CONFIG), before);  // nothing by halves
  Answer<bool> nobody;
  host.hypervisor->assign("nobody", {"a"}, false, nobody.done());
  expect_code(nobody.wait().error(), ErrorCode::kNotFound, "no guest nobody");
}
END_TEST

START_TEST(attach_and_detach_at_the_edges) {
  const Virsh virsh;
  Host host(kUri);
  host.wait_for("connected\n");
  Answer<void> attached;
  host.hypervisor->attach_endpoint(kUuid, "dongle", "/nonexistent", attached.done());
  expect_code(attached.wait().error(), ErrorCode::kRefused, "cannot attach dongle to guest test: libvirt says");
  Answer<void> not_there;
  host.hypervisor->detach(kUuid, "dongle", not_there.done());
  ck_assert(not_there.wait().has_value());
  Answer<void> no_guest;
  host.hypervisor->detach("11111111-2222-3333-4444-555555555555", "dongle", no_guest.done());
  ck_assert(no_guest.wait().has_value());
  ck_assert_int_eq(virDomainDestroy(*virsh), 0);
  Answer<void> not_running;
  host.hypervisor->attach_endpoint(kUuid, "dongle", "/nonexistent", not_running.done());
  expect_code(not_running.wait().error(), ErrorCode::kRefused, "does not run");
  Answer<void> detached;
  host.hypervisor->detach(kUuid, "dongle", detached.done());
  ck_assert(detached.wait().has_value());
}
END_TEST

START_TEST(without_libvirt) {
  Host host("qemu+unix:///system?socket=/nonexistent/libvirt-sock");
  Answer<Guest> at_once;
  host.hypervisor->find_guest("test", at_once.done());
  expect_code(at_once.wait().error(), ErrorCode::kUnavailable, "libvirt is away");
  host.wait_for("disconnected\n");
  // A second and third attempt tell nothing new.
  bool later = false;
  const auto timer = run_after(1'000'000'000, [&] { later = true; });
  ck_assert(run_until([&] { return later; }));
  test::expect_text(host.trace, "disconnected\n");
  ck_assert(!host.hypervisor->is_connected());
  ck_assert(host.hypervisor->describe().find("/nonexistent/libvirt-sock") != std::string::npos);
}
END_TEST

START_TEST(none) {
  Host host("none");
  expect_code(host.find("test").error(), ErrorCode::kUnavailable, "libvirt_uri=none");
  ck_assert(!host.hypervisor->is_connected());
  test::expect_text(host.trace, "");
}
END_TEST

START_TEST(destroyed_with_calls_under_way) {
  for (int round = 0; round < 20; ++round) {
    bool called = false;
    {
      Host host(kUri);
      if (round % 2 == 0) host.wait_for("connected\n");
      for (int i = 0; i < 20; ++i) host.hypervisor->find_guest("test", [&](const Result<Guest>&) { called = true; });
    }
    test::run_posted();
    ck_assert(!called);
  }
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "libvirt_hypervisor",
      {connects_and_looks_up, hears_starts_and_stops, assigns, assigns_what_there_is, bad_assignments,
       attach_and_detach_at_the_edges, without_libvirt, none, destroyed_with_calls_under_way},
      60);
}
