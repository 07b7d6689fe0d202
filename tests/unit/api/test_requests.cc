// Requests and answers: order, pipelining, back-pressure, abandoned requests, lost responders.
#include <sys/socket.h>

#include <cstring>
#include <thread>

#include "common/boottime.h"
#include "common/client.h"
#include "common/main_loop.h"
#include "tests/unit/api/fixture.h"

using namespace usblease;
using namespace usblease::test;

namespace {

START_TEST(hello_and_a_request) {
  api::Caller seen;
  ServerFixture fixture({}, [&](const api::Caller& caller, const api::ClientFrame& frame, const api::Responder& r) {
    seen = caller;
    ck_assert(frame.has_device_info());
    api::ServerFrame answer;
    answer.mutable_device_info()->mutable_device()->set_state(frame.device_info().device());
    r.finish(answer);
  });
  RawClient client(fixture.path());
  client.hello();
  auto reply = client.receive();
  ck_assert_uint_eq(reply.id(), 1);
  ck_assert_uint_eq(reply.hello().version(), kApiVersion);
  ck_assert_text_eq(reply.hello().host_id(), "here");

  api::ClientFrame request;
  request.set_id(77);
  request.mutable_device_info()->set_device("dongle");
  client.send(request);
  reply = client.receive();
  ck_assert_uint_eq(reply.id(), 77);
  ck_assert(!reply.more());
  ck_assert_int_eq(reply.status().code(), command::CODE_OK);  // filled in
  ck_assert_text_eq(reply.device_info().device().state(), "dongle");
  ck_assert_uint_eq(seen.uid, getuid());
  ck_assert_int_eq(seen.pid, getpid());
  ck_assert(seen.may_act && seen.may_read);
  ck_assert_text_eq(seen.name, "root");
}
END_TEST

// As the command line and the hook do it: a blocking client in a process or thread of its own.
START_TEST(the_blocking_client) {
  ServerFixture fixture;
  bool finished = false;
  std::string problem;
  std::thread thread([&] {
    const std::uint64_t deadline_ns = boottime_now_ns() + 5'000'000'000;
    auto client = Client::connect(fixture.path(), deadline_ns);
    api::ClientFrame frame;
    frame.mutable_hello()->set_version(kApiVersion);
    for (std::uint64_t id = 1; id <= 100 && client && problem.empty(); ++id) {
      frame.set_id(id);
      if (id == 2) frame.mutable_list_devices();
      if (!client->send(frame.SerializeAsString(), deadline_ns)) problem = "send";
      const auto payload = client->receive(deadline_ns);
      api::ServerFrame answer;
      if (!payload || !answer.ParseFromString(*payload) || answer.id() != id) problem = "answer";
      if (answer.status().code() != command::CODE_OK) problem = answer.status().message();
    }
    if (!client) problem = client.error().message;
    post([&] { finished = true; });
  });
  iterate_until([&] { return finished; });
  thread.join();
  ck_assert_text_eq(problem, "");
}
END_TEST

START_TEST(answers_may_come_in_any_order) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  for (std::uint64_t id = 2; id <= 4; ++id) client.request(id);
  iterate_until([&] { return keeper.responders.size() == 3; });
  keeper.responders[2].finish(text_frame("third"));
  keeper.responders[0].progress(text_frame("still"));
  keeper.responders[1].fail(command::CODE_REFUSED, "no");
  keeper.responders[0].finish(text_frame("first"));
  // Ignored from here on.
  keeper.responders[0].finish(text_frame("again"));
  keeper.responders[0].progress(text_frame("again"));
  const struct {
    std::uint64_t id;
    bool more;
    const char* message;
  } expected[] = {{4, false, "third"}, {2, true, "still"}, {3, false, "no"}, {2, false, "first"}};
  for (const auto& row : expected) {
    const auto answer = client.receive();
    ck_assert_uint_eq(answer.id(), row.id);
    ck_assert_int_eq(answer.more(), row.more);
    ck_assert_text_eq(answer.status().message(), row.message);
  }
  iterate_pending();
  ck_assert(!client.poll().has_value());
}
END_TEST

START_TEST(many_requests_at_once_keep_their_order) {
  std::size_t handled = 0;
  ServerFixture fixture({},
                        [&](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/, const api::Responder& r) {
                          ++handled;
                          r.finish({});
                        });
  RawClient client(fixture.path());
  std::string bytes;
  api::ClientFrame frame;
  frame.set_id(1);
  frame.mutable_hello()->set_version(kApiVersion);
  bytes += encode_frame(frame.SerializeAsString());
  frame.mutable_list_devices();
  constexpr std::uint64_t kRequests = 3'000;
  for (std::uint64_t id = 2; id <= kRequests; ++id) {
    frame.set_id(id);
    bytes += encode_frame(frame.SerializeAsString());
  }
  client.send_bytes(bytes);
  for (std::uint64_t id = 1; id <= kRequests; ++id) ck_assert_uint_eq(client.receive().id(), id);
  ck_assert_uint_eq(handled, kRequests - 1);
}
END_TEST

// One client's flood does not keep another one waiting: it has its turn before the flood is through.
START_TEST(a_flood_does_not_starve_others) {
  std::size_t flooded = 0;
  std::size_t flooded_before_other = 0;
  ServerFixture fixture({}, [&](const api::Caller& /*caller*/, const api::ClientFrame& frame, const api::Responder& r) {
    if (frame.has_status()) flooded_before_other = flooded;
    if (frame.has_list_devices()) ++flooded;
    r.finish({});
  });
  RawClient flood(fixture.path());
  RawClient other(fixture.path());
  flood.greet();
  other.greet();
  api::ClientFrame frame;
  frame.mutable_list_devices();
  std::string bytes;
  for (std::uint64_t id = 2; id < 5'000; ++id) {
    frame.set_id(id);
    bytes += encode_frame(frame.SerializeAsString());
  }
  flood.send_bytes(bytes);
  frame.set_id(2);
  frame.mutable_status();
  other.send(frame);
  other.receive();
  ck_assert_uint_lt(flooded_before_other, 200);
  while (flood.receive().id() != 4'999) {
  }
  ck_assert_uint_eq(flooded, 4'998);
}
END_TEST

START_TEST(reading_pauses_at_the_bound_of_unanswered_requests) {
  Keeper keeper;
  api::Limits limits;
  limits.requests_per_connection = 4;
  ServerFixture fixture(limits, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  for (std::uint64_t id = 2; id < 12; ++id) client.request(id);
  iterate_until([&] { return keeper.ids.size() == 4; });
  iterate_pending();
  ck_assert_uint_eq(keeper.ids.size(), 4);
  // Each answer lets one more in; nothing was refused, nothing lost.
  for (std::size_t i = 0; i < 10; ++i) {
    iterate_until([&] { return keeper.ids.size() > i; });
    ck_assert_uint_le(keeper.ids.size(), i + 4);
    keeper.responders[i].finish({});
    ck_assert_uint_eq(client.receive().id(), i + 2);
  }
}
END_TEST

START_TEST(a_client_that_leaves_is_noticed_while_reading_pauses) {
  Keeper keeper;
  api::Limits limits;
  limits.requests_per_connection = 1;
  ServerFixture fixture(limits, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  client.request(3);
  iterate_until([&] { return keeper.ids.size() == 1; });
  int abandoned = 0;
  keeper.responders[0].on_abandoned([&] { ++abandoned; });
  client.close();
  iterate_until([&] { return abandoned == 1; });
  ck_assert_uint_eq(fixture.server().connections(), 0);
  ck_assert_uint_eq(keeper.ids.size(), 1);
}
END_TEST

START_TEST(an_abandoned_request_runs_its_callback_once) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  client.request(3);
  iterate_until([&] { return keeper.responders.size() == 2; });
  int abandoned = 0;
  int answered = 0;
  keeper.responders[0].on_abandoned([&] { ++abandoned; });
  keeper.responders[1].on_abandoned([&] { ++answered; });
  ck_assert(keeper.responders[0].is_open());
  keeper.responders[1].finish({});
  ck_assert(!keeper.responders[1].is_open());
  client.close();
  iterate_until([&] { return fixture.server().connections() == 0; });
  ck_assert_int_eq(abandoned, 1);
  ck_assert_int_eq(answered, 0);
  ck_assert(!keeper.responders[0].is_open());
  // Late answers go nowhere.
  keeper.responders[0].progress({});
  keeper.responders[0].finish({});
  keeper.responders[0].on_abandoned([&] { ++abandoned; });
  ck_assert_int_eq(abandoned, 2);  // gone already: at once
  keeper.responders.clear();
  iterate_pending();
  ck_assert_int_eq(abandoned, 2);
}
END_TEST

// The handler walks over its waiting requests and answers them; the client is gone, and the callback changes the list.
START_TEST(no_callback_runs_inside_an_answer) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  client.request(3);
  iterate_until([&] { return keeper.responders.size() == 2; });
  int abandoned = 0;
  for (const auto& responder : keeper.responders) {
    responder.on_abandoned([&] {
      ++abandoned;
      keeper.responders.clear();
    });
  }
  client.close();  // the server does not know yet
  for (const auto& responder : keeper.responders) responder.progress(text_frame("x"));
  ck_assert_int_eq(abandoned, 0);
  iterate_until([&] { return fixture.server().connections() == 0; });
  ck_assert_int_eq(abandoned, 1);  // the second one died with the list
}
END_TEST

START_TEST(a_lost_responder_answers_for_itself) {
  ServerFixture fixture(
      {}, [](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/, const api::Responder& responder) {
        const std::vector<api::Responder> copies{responder, responder};  // all die unanswered
        copies.back().progress(text_frame("began"));
      });
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  ck_assert(client.receive().more());
  const auto answer = client.receive();
  ck_assert_uint_eq(answer.id(), 2);
  ck_assert(!answer.more());
  ck_assert_int_eq(answer.status().code(), command::CODE_INTERNAL);
}
END_TEST

START_TEST(an_id_is_free_again_after_its_answer) {
  ServerFixture fixture;
  RawClient client(fixture.path());
  client.greet();
  for (int i = 0; i < 3; ++i) {
    client.request(5);
    ck_assert_uint_eq(client.receive().id(), 5);
  }
}
END_TEST

// No answer could be told from that of the first request.
START_TEST(an_id_in_use_ends_the_connection) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  client.request(5);
  client.request(5);
  const auto answer = client.receive();
  ck_assert_uint_eq(answer.id(), 0);
  ck_assert_int_eq(answer.status().code(), command::CODE_BAD_REQUEST);
  ck_assert_ptr_nonnull(strstr(answer.status().message().c_str(), "request id 5 is still in use"));
  client.wait_for_end();
  ck_assert_uint_eq(keeper.ids.size(), 1);
  ck_assert(!keeper.responders[0].is_open());
}
END_TEST

START_TEST(id_0_belongs_to_the_connection) {
  ServerFixture fixture;
  RawClient client(fixture.path());
  client.greet();
  client.request(0);
  const auto answer = client.receive();
  ck_assert_uint_eq(answer.id(), 0);
  ck_assert_int_eq(answer.status().code(), command::CODE_BAD_REQUEST);
  ck_assert_ptr_nonnull(strstr(answer.status().message().c_str(), "request id 0 is not allowed"));
  client.wait_for_end();
}
END_TEST

START_TEST(an_answer_that_is_too_large_says_so) {
  ServerFixture fixture({}, [](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/,
                               const api::Responder& r) { r.finish(text_frame(std::string(kFramePayloadMax, 'x'))); });
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  const auto answer = client.receive();
  ck_assert_uint_eq(answer.id(), 2);
  ck_assert_int_eq(answer.status().code(), command::CODE_INTERNAL);
  ck_assert_ptr_nonnull(strstr(answer.status().message().c_str(), "more than the protocol allows"));
}
END_TEST

// A name that a device chose must not make the answer unreadable.
START_TEST(a_message_with_bad_utf8_is_escaped) {
  ServerFixture fixture({}, [](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/,
                               const api::Responder& r) { r.fail(command::CODE_NOT_FOUND, "no \xff here"); });
  RawClient client(fixture.path());
  client.greet();
  client.request(2);
  ck_assert_text_eq(client.receive().status().message(), "no \\xFF here");
}
END_TEST

START_TEST(responders_outlive_the_server) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  client.greet();
  for (std::uint64_t id = 2; id < 6; ++id) client.request(id);
  iterate_until([&] { return keeper.responders.size() == 4; });
  int abandoned = 0;
  for (const auto& responder : keeper.responders) responder.on_abandoned([&] { ++abandoned; });
  fixture.destroy_server();
  ck_assert_int_eq(abandoned, 0);
  ck_assert(!keeper.responders[0].is_open());
  keeper.responders[0].finish({});
  keeper.responders[1].progress({});
  keeper.responders[2].fail(command::CODE_INTERNAL, "late");
  keeper.responders.clear();
  client.wait_for_end();
  iterate_pending();
  ck_assert_int_eq(abandoned, 0);
}
END_TEST

// The callback of an abandoned request may stop the whole server.
START_TEST(a_callback_may_destroy_the_server) {
  Keeper keeper;
  ServerFixture fixture({}, keeper.handler());
  RawClient client(fixture.path());
  RawClient other(fixture.path());
  client.greet();
  other.greet();
  client.request(2);
  client.request(3);
  iterate_until([&] { return keeper.responders.size() == 2; });
  bool destroyed = false;
  keeper.responders[0].on_abandoned([&] {
    fixture.destroy_server();
    destroyed = true;
  });
  client.send_bytes("\xff\xff\xff\xff");
  iterate_until([&] { return destroyed; });
  other.wait_for_end();
  iterate_pending();
}
END_TEST

START_TEST(clients_in_mid_request_when_the_server_ends) {
  auto fixture = std::make_unique<ServerFixture>();
  RawClient fresh(fixture->path());
  RawClient half(fixture->path());
  half.greet();
  half.send_bytes(std::string("\0\0\0\x10half", 8));
  RawClient waiting(fixture->path());  // in the backlog
  iterate_pending();
  fixture->destroy_server();
  fresh.wait_for_end();
  half.wait_for_end();
  waiting.wait_for_end();
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("api");
  TCase* const all = tcase_create("requests");
  tcase_set_timeout(all, 20);
  tcase_add_test(all, hello_and_a_request);
  tcase_add_test(all, the_blocking_client);
  tcase_add_test(all, answers_may_come_in_any_order);
  tcase_add_test(all, many_requests_at_once_keep_their_order);
  tcase_add_test(all, a_flood_does_not_starve_others);
  tcase_add_test(all, reading_pauses_at_the_bound_of_unanswered_requests);
  tcase_add_test(all, a_client_that_leaves_is_noticed_while_reading_pauses);
  tcase_add_test(all, an_abandoned_request_runs_its_callback_once);
  tcase_add_test(all, no_callback_runs_inside_an_answer);
  tcase_add_test(all, a_lost_responder_answers_for_itself);
  tcase_add_test(all, an_id_is_free_again_after_its_answer);
  tcase_add_test(all, an_id_in_use_ends_the_connection);
  tcase_add_test(all, id_0_belongs_to_the_connection);
  tcase_add_test(all, an_answer_that_is_too_large_says_so);
  tcase_add_test(all, a_message_with_bad_utf8_is_escaped);
  tcase_add_test(all, responders_outlive_the_server);
  tcase_add_test(all, a_callback_may_destroy_the_server);
  tcase_add_test(all, clients_in_mid_request_when_the_server_ends);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
