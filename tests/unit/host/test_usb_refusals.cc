// What the kernel refused, and what of it the cluster hears.
#include "daemon/host/usb_refusals.h"
#include "tests/unit/host/fake_usb_gate.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::FakeGate;
using test::run_until;

class Coordinator final : public cluster::CoordinatorLink {
 public:
  void submit(command::Command command, std::function<void(command::Reply)> reply) override {
    said.push_back(command.note_refusals());
    command::Reply ok;
    ok.mutable_status()->set_code(command::CODE_OK);
    reply(ok);
  }
  void renew(peer::Renewal /*renewal*/, std::function<void(peer::RenewalAnswer)> /*answer*/) override {}
  std::vector<command::NoteRefusals> said;
};

struct Refused {
  // Until it has looked twice: once what goes on now was seen for sure.
  void look() {
    const int before = gate.counted;
    ck_assert(run_until([&] { return gate.counted >= before + 2; }));
    test::run_posted();
  }
  FakeGate gate;
  Coordinator coordinator;
  std::map<std::string, UsbRefusals::Calm> calm = {{"stick", {{"1-2", 1, 7, 99}, 3}}};
  UsbRefusals refusals{gate, coordinator, "here", [this] { return calm; }, 1'000'000};
};

START_TEST(what_is_new_is_told_once) {
  Refused r;
  r.gate.refused = 5;  // before it looked for the first time
  r.look();
  ck_assert(r.coordinator.said.empty());
  r.gate.refused = 12;
  r.look();
  r.look();
  ck_assert_uint_eq(r.coordinator.said.size(), 1);
  ck_assert_uint_eq(r.coordinator.said[0].calls(), 7);
  ck_assert_str_eq(r.coordinator.said[0].device().c_str(), "stick");
  ck_assert_str_eq(r.coordinator.said[0].host_id().c_str(), "here");
}
END_TEST

START_TEST(what_a_fenced_holder_still_tries_is_not) {
  Refused r;
  r.look();
  const auto stick = std::exchange(r.calm, {});
  r.gate.refused = 40;
  run_until([] { return false; }, 20);
  r.calm = stick;
  r.calm.at("stick").stay = 4;
  r.look();
  ck_assert(r.coordinator.said.empty());
  r.gate.refused = 41;
  r.look();
  ck_assert_uint_eq(r.coordinator.said.size(), 1);
}
END_TEST

START_TEST(another_device_at_the_port_begins_anew) {
  Refused r;
  r.look();
  r.gate.refused = 40;
  r.calm.at("stick").place.inode = 100;
  r.look();
  ck_assert(r.coordinator.said.empty());
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "usb_refusals",
      {what_is_new_is_told_once, what_a_fenced_holder_still_tries_is_not, another_device_at_the_port_begins_anew}, 60);
}
