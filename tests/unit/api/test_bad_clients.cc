// What comes from clients that do wrong: it ends their own connection with a reason, and nobody else's.
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstring>

#include "common/main_loop.h"
#include "tests/unit/api/fixture.h"

using namespace usblease;
using namespace usblease::test;

namespace {

using std::string_literals::operator""s;

api::ClientFrame hello_frame() {
  api::ClientFrame frame;
  frame.set_id(1);
  frame.mutable_hello()->set_version(kApiVersion);
  return frame;
}

// One error frame with that code and words, then the end.
void expect_end(RawClient& client, std::uint64_t id, command::Code code, const char* words) {
  const auto frame = client.receive();
  ck_assert_uint_eq(frame.id(), id);
  ck_assert_int_eq(frame.status().code(), code);
  ck_assert_msg(frame.status().message().find(words) != std::string::npos, "expected \"%s\" in \"%s\"", words,
                frame.status().message().c_str());
  client.wait_for_end();
  ck_assert(!client.poll().has_value());
}

const struct {
  bool greeted;
  std::string bytes;
  const char* words;
} kGarbage[] = {
    {false, "GET / HTTP/1.1\r\n\r\n", "at most 1048576 are allowed"},
    {true, "GET / HTTP/1.1\r\n\r\n", "at most 1048576 are allowed"},
    {true, "\xff\xff\xff\xff", "a frame of 4294967295 bytes was announced"},
    {true, "\x00\x10\x00\x01"s, "a frame of 1048577 bytes was announced"},
    {true, "\x00\x00\x00\x04\xff\xff\xff\xff"s, "a frame of 4 bytes is not a request of protocol version 1"},
    {false, "\x00\x00\x00\x02\x12\x7f"s, "a frame of 2 bytes is not a request"},
    // A device's name that is not UTF-8.
    {true, "\x00\x00\x00\x07\x08\x02\x22\x03\x0a\x01\xff"s, "is not a request"},
};

START_TEST(garbage_gets_one_error_and_the_end) {
  const auto& row = kGarbage[_i];
  ServerFixture fixture;
  RawClient other(fixture.path());
  other.greet();
  RawClient client(fixture.path());
  if (row.greeted) client.greet();
  client.send_bytes(row.bytes);
  expect_end(client, 0, command::CODE_BAD_REQUEST, row.words);
  ck_assert_uint_eq(fixture.server().connections(), 1);
  other.request(2);
  ck_assert_uint_eq(other.receive().id(), 2);
}
END_TEST

// Whole requests before the garbage are answered; nothing after it is looked at.
START_TEST(requests_before_garbage_are_answered) {
  int handled = 0;
  ServerFixture fixture({},
                        [&](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/, const api::Responder& r) {
                          ++handled;
                          r.finish({});
                        });
  RawClient client(fixture.path());
  client.greet();
  api::ClientFrame frame;
  frame.set_id(2);
  frame.mutable_list_devices();
  const std::string request = encode_frame(frame.SerializeAsString());
  client.send_bytes(request + "\xff\xff\xff\xff" + request + request);
  ck_assert_uint_eq(client.receive().id(), 2);
  expect_end(client, 0, command::CODE_BAD_REQUEST, "was announced");
  ck_assert_int_eq(handled, 1);
}
END_TEST

START_TEST(garbage_abandons_what_is_unanswered) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  iterate_until([&] { return keeper.responders.size() == 1; });
  int abandoned = 0;
  keeper.responders[0].on_abandoned([&] { ++abandoned; });
  client.send_bytes("\xff\xff\xff\xff");
  expect_end(client, 0, command::CODE_BAD_REQUEST, "was announced");
  ck_assert_int_eq(abandoned, 1);
}
END_TEST

START_TEST(a_frame_in_single_bytes) {
  ServerFixture fixture;
  RawClient client(fixture.path());
  for (const char byte : encode_frame(hello_frame().SerializeAsString())) {
    client.send_bytes({byte});
    iterate_pending();
  }
  ck_assert(client.receive().has_hello());
}
END_TEST

START_TEST(a_frame_that_ends_in_the_middle) {
  int handled = 0;
  ServerFixture fixture({}, [&](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/,
                                const api::Responder& /*r*/) { ++handled; });
  RawClient client(fixture.path());
  client.greet();
  api::ClientFrame frame;
  frame.set_id(2);
  frame.mutable_list_devices();
  const std::string bytes = encode_frame(frame.SerializeAsString());
  client.send_bytes(bytes.substr(0, bytes.size() - 1));
  client.close();
  iterate_until([&] { return fixture.server().connections() == 0; });
  ck_assert_int_eq(handled, 0);
}
END_TEST

START_TEST(the_largest_request_is_taken) {
  std::size_t seen = 0;
  ServerFixture fixture({}, [&](const api::Caller& /*caller*/, const api::ClientFrame& frame, const api::Responder& r) {
    seen = frame.device_info().device().size();
    r.finish({});
  });
  RawClient client(fixture.path());
  client.greet();
  api::ClientFrame frame;
  frame.set_id(2);
  frame.mutable_device_info()->set_device(std::string(kFramePayloadMax - 32, 'd'));
  const std::string bytes = encode_frame(frame.SerializeAsString());
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count = send(client.fd(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count > 0) sent += static_cast<std::size_t>(count);
    iterate_pending();
  }
  ck_assert_uint_eq(client.receive().id(), 2);
  ck_assert_uint_eq(seen, kFramePayloadMax - 32);
}
END_TEST

START_TEST(another_version_is_refused_with_both_numbers) {
  ServerFixture fixture;
  RawClient client(fixture.path());
  client.hello(kApiVersion + 1);
  const auto frame = client.receive();
  ck_assert_uint_eq(frame.id(), 1);
  ck_assert_int_eq(frame.status().code(), command::CODE_REFUSED);
  ck_assert_uint_eq(frame.hello().version(), kApiVersion);
  ck_assert_ptr_nonnull(strstr(frame.status().message().c_str(), "usbleased speaks version 1 of the request protocol"));
  ck_assert_ptr_nonnull(strstr(frame.status().message().c_str(), "test speaks version 2"));
  client.wait_for_end();
}
END_TEST

START_TEST(hello_must_be_first_and_once) {
  ServerFixture fixture;
  RawClient impatient(fixture.path());
  impatient.request(9);
  expect_end(impatient, 9, command::CODE_BAD_REQUEST, "must be Hello");
  RawClient twice(fixture.path());
  twice.greet();
  twice.hello();
  auto answer = twice.receive();
  ck_assert_int_eq(answer.status().code(), command::CODE_BAD_REQUEST);
  ck_assert_ptr_nonnull(strstr(answer.status().message().c_str(), "Hello came twice"));
  // A request of a later version: refused, and the connection lives.
  twice.send_bytes("\x00\x00\x00\x05\x08\x03\xea\x3e\x00"s);
  answer = twice.receive();
  ck_assert_uint_eq(answer.id(), 3);
  ck_assert_ptr_nonnull(strstr(answer.status().message().c_str(), "does not know that request"));
  twice.request(4);
  ck_assert_int_eq(twice.receive().status().code(), command::CODE_OK);
}
END_TEST

START_TEST(hello_must_come_in_time) {
  api::Limits limits;
  limits.hello_timeout_ms = 30;
  ServerFixture fixture(limits);
  RawClient greeted(fixture.path());
  greeted.greet();
  RawClient silent(fixture.path());
  RawClient dribbling(fixture.path());
  dribbling.send_bytes("\x00\x00"s);
  expect_end(silent, 0, command::CODE_TIMED_OUT, "no Hello came within 30 ms");
  expect_end(dribbling, 0, command::CODE_TIMED_OUT, "no Hello came within 30 ms");
  greeted.request(2);  // had said it: stays
  ck_assert_uint_eq(greeted.receive().id(), 2);
}
END_TEST

// Answers pile up for one that does not read; it is cut off at the bound, and nobody else waits meanwhile.
START_TEST(a_slow_reader_is_cut_off) {
  Keeper keeper;
  api::Limits limits;
  limits.output_bytes = 1'048'576;
  ServerFixture fixture(limits,
                        [&](const api::Caller& caller, const api::ClientFrame& frame, api::Responder responder) {
                          if (frame.has_events()) {
                            keeper.handler()(caller, frame, std::move(responder));
                          } else {
                            responder.finish({});
                          }
                        });
  RawClient slow(fixture.path());
  RawClient other(fixture.path());
  slow.greet();
  other.greet();
  api::ClientFrame follow;
  follow.set_id(2);
  follow.mutable_events()->set_follow(true);
  slow.send(follow);
  iterate_until([&] { return keeper.responders.size() == 1; });
  bool abandoned = false;
  keeper.responders[0].on_abandoned([&] { abandoned = true; });
  const auto event = text_frame(std::string(10'000, 'e'));
  int sent = 0;
  while (!abandoned) {
    keeper.responders[0].progress(event);
    ++sent;
    other.request(static_cast<std::uint64_t>(sent) + 10);
    ck_assert_uint_eq(other.receive().id(), static_cast<std::uint64_t>(sent) + 10);
    ck_assert_int_lt(sent, 1'000);  // the socket's own buffer holds some
  }
  ck_assert_int_gt(sent, 100);
  ck_assert_uint_eq(fixture.server().connections(), 1);
  slow.wait_for_end();
}
END_TEST

// It reads nothing at all, but little is to be read: time ends it.
START_TEST(a_stalled_reader_is_cut_off) {
  api::Limits limits;
  limits.stalled_output_ms = 40;
  Keeper keeper;
  ServerFixture fixture(limits, keeper.handler());
  RawClient stalled(fixture.path());
  stalled.greet();
  stalled.request(2);
  iterate_until([&] { return keeper.responders.size() == 1; });
  bool abandoned = false;
  keeper.responders[0].on_abandoned([&] { abandoned = true; });
  for (int i = 0; i < 100; ++i) keeper.responders[0].progress(text_frame(std::string(10'000, 'e')));
  ck_assert(!abandoned);
  iterate_until([&] { return abandoned; });
  ck_assert_uint_eq(fixture.server().connections(), 0);
}
END_TEST

// It reads slowly but steadily, and asks for much: it gets everything, and is never cut off for it.
START_TEST(a_greedy_reader_gets_everything) {
  api::Limits limits;
  limits.output_bytes = 1'048'576;
  const std::string large(500'000, 'x');
  ServerFixture fixture(limits, [&](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/,
                                    const api::Responder& r) { r.finish(text_frame(large)); });
  RawClient client(fixture.path());
  client.greet();
  for (std::uint64_t id = 2; id < 42; ++id) client.request(id);
  iterate_pending();
  for (std::uint64_t id = 2; id < 42; ++id) {
    const auto answer = client.receive();
    ck_assert_uint_eq(answer.id(), id);
    ck_assert_uint_eq(answer.status().message().size(), large.size());
  }
}
END_TEST

START_TEST(connections_are_bounded) {
  api::Limits limits;
  limits.connections = 4;
  limits.connections_for_root = 1;
  ServerFixture fixture(limits);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<RawClient>(fixture.path()));
    clients.back()->greet();
  }
  RawClient fifth(fixture.path());
  expect_end(fifth, 0, command::CODE_UNAVAILABLE, "usbleased serves 4 connections already");
  clients.pop_back();
  iterate_until([&] { return fixture.server().connections() == 3; });
  RawClient again(fixture.path());
  again.greet();
}
END_TEST

// Out of descriptors: the client waits in the backlog, nothing spins or ends, and it is served when there are some.
START_TEST(no_descriptors_left) {
  ServerFixture fixture;
  RawClient before(fixture.path());
  before.greet();
  RawClient client(fixture.path());
  rlimit limit{};
  ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlimit none = limit;
  none.rlim_cur = 3;
  ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
  int iterations = 0;
  bool later = false;
  const auto timer = run_after(100'000'000, [&] { later = true; });
  while (!later) {
    g_main_context_iteration(nullptr, TRUE);
    ++iterations;
  }
  ck_assert_int_lt(iterations, 20);
  ck_assert_uint_eq(fixture.server().connections(), 1);
  before.request(2);
  ck_assert_uint_eq(before.receive().id(), 2);
  ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  client.greet();
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("api");
  TCase* const all = tcase_create("bad_clients");
  tcase_set_timeout(all, 20);
  tcase_add_loop_test(all, garbage_gets_one_error_and_the_end, 0, static_cast<int>(std::size(kGarbage)));
  tcase_add_test(all, requests_before_garbage_are_answered);
  tcase_add_test(all, garbage_abandons_what_is_unanswered);
  tcase_add_test(all, a_frame_in_single_bytes);
  tcase_add_test(all, a_frame_that_ends_in_the_middle);
  tcase_add_test(all, the_largest_request_is_taken);
  tcase_add_test(all, another_version_is_refused_with_both_numbers);
  tcase_add_test(all, hello_must_be_first_and_once);
  tcase_add_test(all, hello_must_come_in_time);
  tcase_add_test(all, a_slow_reader_is_cut_off);
  tcase_add_test(all, a_stalled_reader_is_cut_off);
  tcase_add_test(all, a_greedy_reader_gets_everything);
  tcase_add_test(all, connections_are_bounded);
  if (!kSanitized) tcase_add_test(all, no_descriptors_left);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
