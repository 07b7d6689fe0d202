// The look without a parser must never say "nothing" of a guest that has something; and the bounds of reading stdin.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "common/boottime.h"
#include "common/fd.h"
#include "plugin/libvirt/gate.h"
#include "plugin/libvirt/input.h"
#include "plugin/libvirt/quick_look.h"
#include "tests/unit/hook/hook_testing.h"

using namespace usblease;
using namespace usblease::hook;
using namespace usblease::hook::testing;

namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

bool may(const std::string& xml) { return may_declare(xml.data(), xml.size(), true); }

struct Read {
  InputOutcome outcome;
  bool may;
  std::size_t size;
};

// Reads `head`, then `fill` spaces, then `tail` from a pipe.
Read read_piped(const std::string& head, std::size_t fill, const std::string& tail) {
  int ends[2];
  ck_assert_int_eq(pipe(ends), 0);
  const UniqueFd from(ends[0]);
  std::thread writer([fd = ends[1], &head, fill, &tail] {
    const UniqueFd to(fd);
    const auto put = [&to](const std::string& text) {
      for (std::size_t at = 0; at < text.size();) {
        const ssize_t count = write(to.get(), text.data() + at, text.size() - at);
        if (count <= 0) return;
        at += static_cast<std::size_t>(count);
      }
    };
    put(head);
    put(std::string(fill, ' '));
    put(tail);
  });
  Input input;
  const InputOutcome outcome = input.read_all(from.get(), boottime_now_ns() + 20'000 * kNsPerMs);
  writer.join();
  return {outcome, input.may_declare(), input.size()};
}

constexpr std::size_t kMib = 1024UL * 1024;

}  // namespace

START_TEST(an_ordinary_guest_declares_nothing) {
  ck_assert(
      !may(domain_xml("<disk type='file'><source file='/srv/a.qcow2'/><target dev='vda'/></disk>"
                      "<serial type='pty'><source path='/dev/pts/12'/></serial>"
                      "<console type='pty' tty='/dev/pts/12'/>"
                      "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
                      "<channel type='unix'><source mode='bind' path='/run/qga.sock'/></channel>")));
}
END_TEST

START_TEST(whatever_counts_is_seen) {
  const std::string cases[] = {
      domain_xml("", our_metadata("")),
      domain_xml("<hostdev mode='subsystem' type='usb'/>"),
      domain_xml("<redirdev bus='usb' type='spicevmc'/>"),
      domain_xml("<disk type='block'><source dev='/x'/></disk>"),
      domain_xml("<disk type='file'><source file='/dev/sda'/></disk>"),
      domain_xml("<disk type='file'><source file='/x/..//dev/sda'/></disk>"),
      domain_xml("<serial type='dev'><source path='/x'/></serial>"),
      domain_xml("<serial type=\"dev\"><source path='/x'/></serial>"),
      domain_xml("<interface type='direct'><source dev='enx0'/></interface>"),
      // What is harmless only as a whole name.
      domain_xml("<serial><source path='/dev/pts/../sda'/></serial>"),
      domain_xml("<serial><source path='/dev/pts/1/../../sda'/></serial>"),
      domain_xml("<rng><backend>/dev/urandom2</backend></rng>"),
      domain_xml("<rng><backend>/dev/urandom/../sda</backend></rng>"),
      domain_xml("<rng><backend>/dev/hwrng</backend></rng>"),
      // What hides a name: character references, encodings, a document type.
      domain_xml("", "<d xmlns='urn:usb&#108;ease:domain:1'/>"),
      "<?xml version='1.0' encoding='UTF-7'?><domain/>",
      "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>",
      "\xef\xbb\xbf<domain/>",
      std::string("<\0d\0o\0m\0a\0i\0n\0/\0>\0", 18),
      "",
      "<dom",
      "<network/>",
  };
  for (const auto& xml : cases) ck_assert_msg(may(xml), "%s", xml.c_str());
}
END_TEST

START_TEST(a_whole_text_is_kept) {
  const std::string xml = domain_xml("");
  const Read read = read_piped(xml, 0, "");
  ck_assert(read.outcome == InputOutcome::kWhole);
  ck_assert(!read.may);
  ck_assert_uint_eq(read.size, xml.size());
  const Read most = read_piped("<domain>", kXmlBytesMax - 8, "");
  ck_assert(most.outcome == InputOutcome::kWhole);
  ck_assert_uint_eq(most.size, kXmlBytesMax);
}
END_TEST

START_TEST(a_large_text_is_looked_through) {
  const Read nothing = read_piped("<domain>", 50 * kMib, "</domain>");
  ck_assert(nothing.outcome == InputOutcome::kTooLarge);
  ck_assert(!nothing.may);
  const Read late = read_piped("<domain>", 50 * kMib, "<hostdev/></domain>");
  ck_assert(late.outcome == InputOutcome::kTooLarge);
  ck_assert(late.may);
  const Read early = read_piped("<domain><redirdev/>", 20 * kMib, "</domain>");
  ck_assert(early.may);
  ck_assert(read_piped("<?xml ?><domain>", 20 * kMib, "").may);
}
END_TEST

START_TEST(a_name_across_the_edge_of_the_buffer_is_seen) {
  for (std::size_t shift = 0; shift <= 9; ++shift) {
    const Read read = read_piped("<domain>", kXmlBytesMax - 8 - shift, "<redirdev/></domain>");
    ck_assert_msg(read.outcome == InputOutcome::kTooLarge && read.may, "shift %zu", shift);
  }
}
END_TEST

START_TEST(a_text_without_an_end_is_bounded_in_time) {
  int ends[2];
  ck_assert_int_eq(pipe(ends), 0);
  const UniqueFd from(ends[0]);
  const UniqueFd to(ends[1]);
  ck_assert_int_eq(write(to.get(), "<domain>", 8), 8);
  Input input;
  const std::uint64_t before_ns = boottime_now_ns();
  ck_assert(input.read_all(from.get(), before_ns + 100 * kNsPerMs) == InputOutcome::kLate);
  const std::uint64_t took_ns = boottime_now_ns() - before_ns;
  ck_assert(took_ns >= 100 * kNsPerMs && took_ns < 5'000 * kNsPerMs);
  ck_assert(input.may_declare());
  Input broken;
  ck_assert(broken.read_all(-1, boottime_now_ns() + 100 * kNsPerMs) != InputOutcome::kWhole);
}
END_TEST

START_TEST(gates) {
  for (const char* name : {"prepare", "start", "migrate", "restore"}) ck_assert(gate_of(name) == Gate::kStart);
  ck_assert(gate_of("started") == Gate::kRefuse);
  for (const char* name : {"stopped", "release", "reconnect"}) ck_assert(gate_of(name) == Gate::kTell);
  for (const char* name : {"attach", "", "PREPARE", "prepare ", "starts"}) ck_assert(gate_of(name) == Gate::kNone);
}
END_TEST

int main() {
  return test::run_suite("hook-quick_look",
                         {an_ordinary_guest_declares_nothing, whatever_counts_is_seen, a_whole_text_is_kept,
                          a_large_text_is_looked_through, a_name_across_the_edge_of_the_buffer_is_seen,
                          a_text_without_an_end_is_bounded_in_time, gates},
                         60);
}
