// The way to the coordinator: whose word counts, when words contradict each other, and after a store went back in time.
#include <glib.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "common/boottime.h"
#include "daemon/cluster/router.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

using Body = peer::PeerRequest::BodyCase;

peer::CoordinatorIs is(const std::string& host_id, std::uint64_t term) {
  peer::CoordinatorIs out;
  out.set_host_id(host_id);
  out.set_term(term);
  return out;
}

// Keeps what was asked; the test answers in the others' names.
class Others : public cluster::Transport {
 public:
  struct Asked {
    std::string host;
    peer::PeerRequest request;
  };
  std::vector<Asked> asked;

  void set_peers(std::vector<cluster::Peer> /*peers*/) override {}
  bool ask(const std::string& host_id, std::string payload) override {
    Asked& one = asked.emplace_back();
    one.host = host_id;
    ck_assert(one.request.ParseFromString(payload));
    return true;
  }
  bool answer(cluster::AcceptedId /*id*/, std::string /*payload*/) override { return false; }
  void drop(cluster::AcceptedId /*id*/) override {}
  void forbid(const std::string& /*host_id*/) override {}
  void permit(const std::string& /*host_id*/) override {}
  [[nodiscard]] bool connected(const std::string& /*host_id*/) const override { return true; }
};

// A plain host's router.
struct Fixture {
  Others others;
  cluster::Router router{"p", {}};
  cluster::PeerCalls calls{
      others, [this](const std::string& host, const peer::PeerAnswer& push) { router.pushed(host, push); }};

  Fixture() { router.set_calls(&calls); }

  void up(const std::string& host) {
    calls.up(host);
    router.peer_up(host);
  }
  void down(const std::string& host) {
    calls.down(host);
    router.peer_down(host);
  }
  void says(const std::string& from, const peer::CoordinatorIs& who) {
    peer::PeerAnswer push;
    *push.mutable_coordinator_is() = who;
    calls.answer(from, push.SerializeAsString());
  }
  // The host that was asked last for a subscription; the answer to it is `serves` or a denial.
  std::string subscribed_at() {
    for (auto at = others.asked.rbegin(); at != others.asked.rend(); ++at) {
      if (at->request.has_subscribe()) return at->host;
    }
    return "";
  }
  int subscriptions() {
    int count = 0;
    for (const Others::Asked& one : others.asked) count += one.request.has_subscribe() ? 1 : 0;
    return count;
  }
  void answer_subscription(const peer::CoordinatorIs* denies) {
    for (auto at = others.asked.rbegin(); at != others.asked.rend(); ++at) {
      if (!at->request.has_subscribe()) continue;
      peer::PeerAnswer answer;
      answer.set_id(at->request.id());
      if (denies != nullptr) {
        *answer.mutable_not_coordinator() = *denies;
        return calls.answer(at->host, answer.SerializeAsString());
      }
      answer.mutable_failed()->set_code(command::CODE_OK);
      const std::string host = at->host;
      calls.answer(host, answer.SerializeAsString());
      peer::PeerAnswer push;
      push.mutable_view()->set_whole(true);
      return calls.answer(host, push.SerializeAsString());
    }
    ck_abort_msg("nothing was subscribed");
  }
  // Runs the main loop until somebody is asked who is the coordinator, and answers for each of them.
  void search(const std::map<std::string, peer::CoordinatorIs>& answers) {
    others.asked.clear();
    const std::uint64_t end_ns = boottime_now_ns() + 10'000'000'000;
    const auto asked = [&] {
      return std::any_of(others.asked.begin(), others.asked.end(),
                         [](const auto& one) { return one.request.body_case() == Body::kWhoIsCoordinator; });
    };
    while (!asked()) {
      ck_assert_msg(boottime_now_ns() < end_ns, "nobody was asked");
      g_main_context_iteration(nullptr, TRUE);
    }
    for (const Others::Asked& one : std::vector<Others::Asked>(others.asked)) {
      if (one.request.body_case() != Body::kWhoIsCoordinator || !answers.contains(one.host)) continue;
      peer::PeerAnswer answer;
      answer.set_id(one.request.id());
      *answer.mutable_coordinator_is() = answers.at(one.host);
      calls.answer(one.host, answer.SerializeAsString());
    }
  }
};

START_TEST(the_greatest_term_wins) {
  Fixture f;
  f.up("a");
  f.up("b");
  f.says("a", is("a", 3));
  ck_assert_text_eq(f.subscribed_at(), "a");
  f.answer_subscription(nullptr);
  ck_assert(f.router.ready());
  f.says("b", is("a", 2));
  f.says("b", is("b", 2));
  ck_assert_int_eq(f.subscriptions(), 1);
  f.says("b", is("b", 4));
  ck_assert_text_eq(f.subscribed_at(), "b");
}
END_TEST

START_TEST(a_lesser_term_of_the_same_host_is_another_election) {
  Fixture f;
  f.up("a");
  f.says("a", is("a", 9));
  f.answer_subscription(nullptr);
  f.says("a", is("a", 5));
  ck_assert_int_eq(f.subscriptions(), 2);
  ck_assert_uint_eq(f.router.coordinator().term(), 5);
}
END_TEST

START_TEST(nobody_waits_for_a_coordinator_of_a_past_that_is_no_more) {
  Fixture f;
  f.up("a");
  f.up("b");
  f.says("a", is("a", 9));
  f.answer_subscription(nullptr);
  f.says("b", is("b", 5));  // it still has one
  ck_assert_text_eq(f.subscribed_at(), "a");
  f.down("a");
  ck_assert(!f.router.ready());
  f.search({{"b", is("b", 5)}});
  ck_assert_text_eq(f.subscribed_at(), "b");
  f.answer_subscription(nullptr);
  ck_assert(f.router.ready());
}
END_TEST

START_TEST(hearsay_leads_to_nobody_who_cannot_be_reached) {
  Fixture f;
  f.up("a");
  f.up("c");
  f.says("a", is("a", 5));
  f.answer_subscription(nullptr);
  f.says("c", is("b", 9));
  ck_assert(f.router.ready());
  ck_assert_text_eq(f.router.coordinator().host_id(), "a");
  // Once there is a way to it, it speaks for itself.
  f.up("b");
  f.says("b", is("b", 9));
  ck_assert_text_eq(f.subscribed_at(), "b");
}
END_TEST

START_TEST(whoever_denies_is_not_believed_to_be_it_on_others_word) {
  Fixture f;
  f.up("a");
  f.up("b");
  f.up("c");
  f.says("c", is("b", 9));
  ck_assert_text_eq(f.subscribed_at(), "b");
  const peer::CoordinatorIs instead = is("a", 5);
  f.answer_subscription(&instead);
  ck_assert_text_eq(f.subscribed_at(), "a");
  f.answer_subscription(nullptr);
  f.says("c", is("b", 9));  // it is cut off from the store and does not know better
  ck_assert(f.router.ready());
  ck_assert_text_eq(f.router.coordinator().host_id(), "a");
  f.says("b", is("b", 6));
  ck_assert_text_eq(f.subscribed_at(), "b");
}
END_TEST

START_TEST(a_denial_without_a_name_is_followed_by_a_search) {
  Fixture f;
  f.up("a");
  f.up("b");
  f.says("a", is("a", 3));
  f.answer_subscription(nullptr);
  f.says("a", {});
  ck_assert(!f.router.ready());
  f.search({{"a", {}}, {"b", is("b", 4)}});
  ck_assert_text_eq(f.subscribed_at(), "b");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("router");
  TCase* const tcase = tcase_create("router");
  tcase_set_timeout(tcase, 60);
  for (const TTest* test :
       {the_greatest_term_wins, a_lesser_term_of_the_same_host_is_another_election,
        nobody_waits_for_a_coordinator_of_a_past_that_is_no_more, hearsay_leads_to_nobody_who_cannot_be_reached,
        whoever_denies_is_not_believed_to_be_it_on_others_word, a_denial_without_a_name_is_followed_by_a_search})
    tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  return test::run_suite(suite);
}
