// What the store holds: encode and load are each other's inverse, and what does not fit together is refused.
#include <functional>

#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

using Entries = std::vector<std::pair<std::string, std::string>>;

// Every kind of record, and every phase of a lease.
World busy() {
  World w;
  w.host("h1");
  w.host("h2");
  record::Policy policy;
  policy.add_guests("web");
  policy.add_guests("db");
  policy.set_isolation_ms(300'000);
  policy.set_until_max_s(10'000);
  w.plug("granted", "h1", {.policy = policy});
  w.plug("revoking", "h1");
  w.plug("fencing", "h2", {.kind = record::DEVICE_KIND_ENDPOINT});
  w.plug("ended", "h2");
  w.unplug("absent", "h2");
  w.plug("unknown", "h1");
  w.acquire("r1", "web@h1", {"granted", "revoking"}, {.duration_s = 100});
  w.acquire("r2", "db@h2", {"fencing", "ended"});
  w.revoke("revoking", 10'000);
  w.revoke("fencing", 0);
  w.release("db@h2", {"ended"});
  w.fenced("ended", 1, "h2");
  w.acquire("r3", "db@h2", {"granted", "fencing"}, {.priority = -3, .duration_s = 7});
  w.acquire("r4", "db@h1", {"absent"});
  w.host("h1", 1, {{.device = "unknown", .armed = 5, .fenced = 3}});
  w.declare_dead("h2");
  w.host("h2", 2);
  return w;
}

START_TEST(load_is_the_inverse_of_encode) {
  const World w = busy();
  const Entries entries = entries_of(w.state());
  auto loaded = load(entries);
  ck_assert_msg(loaded.has_value(), "%s", loaded ? "" : loaded.error().message.c_str());
  ck_assert(entries_of(*loaded) == entries);
  ck_assert_uint_eq(loaded->next_seq(), w.state().next_seq());
  ck_assert(!w.state().meta.behind().empty());
  ASSERT_TEXT(loaded->meta.behind(), w.state().meta.behind());
}
END_TEST

START_TEST(encode_is_sorted_and_names_each_key_once) {
  const Entries entries = entries_of(busy().state());
  for (std::size_t i = 1; i < entries.size(); ++i) ck_assert(entries[i - 1].first < entries[i].first);
}
END_TEST

START_TEST(an_empty_store_is_a_new_cluster) {
  const auto loaded = load({});
  ck_assert(loaded.has_value());
  ck_assert_uint_eq(loaded->meta.format(), 0);
  ck_assert(load({{kCoordinatorKey, "whatever"}, {kTermKey, "\xff"}}).has_value());
  const State fresh = make_state("c1");
  ck_assert_uint_eq(fresh.meta.format(), kRecordFormat);
  ck_assert(load(entries_of(fresh)).has_value());
}
END_TEST

START_TEST(keys_sort_as_their_numbers) {
  ASSERT_TEXT(event_key(7), "event/00000000000000000007");
  ck_assert(event_key(9) < event_key(10));
  ck_assert(event_key(UINT64_MAX - 1) < event_key(UINT64_MAX));
  const State state = make_state("c1");
  ck_assert(!encode_key(state, device_key("none")).value.has_value());
  ck_assert(!encode_key(state, event_key(1)).value.has_value());
  ck_assert(!encode_key(state, "else").value.has_value());
}
END_TEST

template <typename Record>
void edit(Entries& entries, const std::string& key, const std::function<void(Record&)>& change) {
  for (auto& [name, value] : entries) {
    if (name != key) continue;
    Record record;
    ck_assert(record.ParseFromString(value));
    change(record);
    value = record.SerializeAsString();
    return;
  }
  ck_abort_msg("no record %s", key.c_str());
}

void edit_device(Entries& entries, const std::string& name, const std::function<void(record::Device&)>& change) {
  edit<record::Device>(entries, device_key(name), change);
}

void edit_request(Entries& entries, const std::string& id, const std::function<void(record::Request&)>& change) {
  edit<record::Request>(entries, request_key(id), change);
}

struct Broken {
  const char* key;  // that the message must name
  std::function<void(Entries&)> spoil;
};

const std::vector<Broken>& broken_stores() {
  static const std::vector<Broken> kBroken = {
      {"elsewhere", [](Entries& e) { e.emplace_back("elsewhere/x", ""); }},
      {"device/x", [](Entries& e) { e.emplace_back("device/x", "\xff\xff"); }},
      {"device/granted2", [](Entries& e) { e.emplace_back("device/granted2", e.front().second); }},
      {"meta", [](Entries& e) { std::erase_if(e, [](const auto& entry) { return entry.first == "meta"; }); }},
      {"meta", [](Entries& e) { edit<record::Meta>(e, "meta", [](auto& m) { m.set_format(kRecordFormat + 1); }); }},
      {"meta", [](Entries& e) { edit<record::Meta>(e, "meta", [](auto& m) { m.set_epoch(kEpochMax + 1); }); }},
      {"device/granted", [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.set_last_token(0); }); }},
      {"device/granted", [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.set_last_token(UINT64_MAX); }); }},
      {"device/granted",
       [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.mutable_lease()->set_token(0); }); }},
      {"device/granted",
       [](Entries& e) {
         edit_device(e, "granted", [](auto& d) { d.mutable_lease()->set_phase(record::PHASE_UNSPECIFIED); });
       }},
      {"device/granted",
       [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.mutable_lease()->clear_start(); }); }},
      {"device/granted",
       [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.mutable_lease()->clear_instance(); }); }},
      {"device/granted",
       [](Entries& e) { edit_device(e, "granted", [](auto& d) { d.mutable_lease()->clear_request_id(); }); }},
      {"device/granted", [](Entries& e) { edit_device(e, "granted", [](auto& d) { *d.add_homes() = d.homes(0); }); }},
      {"device/granted",
       [](Entries& e) {
         edit_device(e, "granted", [](auto& d) {
           for (int i = 0; i < 17; ++i) {
             *d.add_homes() = d.homes(0);
             d.mutable_homes(d.homes_size() - 1)->mutable_instance()->set_host_id("x" + std::to_string(i));
           }
         });
       }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.clear_devices(); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.add_devices("nowhere"); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.add_devices("absent"); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.set_seq(0); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.set_seq(1'000'000); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.set_priority(1'000); }); }},
      {"request/r3", [](Entries& e) { edit_request(e, "r3", [](auto& r) { r.clear_start(); }); }},
      {"request/",
       [](Entries& e) {
         std::uint64_t seq = 0;
         edit_request(e, "r3", [&](auto& r) { seq = r.seq(); });
         edit_request(e, "r4", [&](auto& r) { r.set_seq(seq); });
       }},
      {"host/h1", [](Entries& e) { edit<record::Host>(e, "host/h1", [](auto& h) { h.clear_boot_id(); }); }},
      {"host/h1",
       [](Entries& e) {
         edit<record::Host>(e, "host/h1", [](auto& h) {
           for (int i = 0; i < 65; ++i) h.add_barred_boot_ids(boot_of("h1"));
         });
       }},
      {"event/",
       [](Entries& e) {
         record::Event event;
         event.set_seq(UINT64_MAX);
         e.emplace_back(event_key(UINT64_MAX), event.SerializeAsString());
       }},
      {"event/",
       [](Entries& e) {
         record::Event event;
         event.set_seq(9);
         e.emplace_back("event/9", event.SerializeAsString());
       }},
  };
  return kBroken;
}

START_TEST(a_store_that_contradicts_itself_is_refused) {
  const Broken& broken = broken_stores().at(static_cast<std::size_t>(_i));
  World w = busy();
  w.new_epoch(1);
  w.plug("absent", "h2", {.counter = 1, .present = false, .boot = 2});
  w.acquire("r3", "db@h2", {"fencing", "granted"}, {.boot = 2});
  w.acquire("r4", "db@h1", {"absent"});
  Entries entries = entries_of(w.state());
  ck_assert(load(entries).has_value());
  broken.spoil(entries);
  const auto loaded = load(entries);
  ck_assert(!loaded.has_value());
  ck_assert(loaded.error().code == ErrorCode::kRefused);
  ck_assert_msg(loaded.error().message.find(broken.key) != std::string::npos, "%s", loaded.error().message.c_str());
}
END_TEST

// A protobuf string that is not UTF-8 can be written and not read: why validate() looks at every text.
START_TEST(a_record_that_is_not_utf8_does_not_parse) {
  record::Presence presence;
  presence.set_detail("ok");
  std::string bytes = presence.SerializeAsString();
  bytes.back() = '\xff';
  ck_assert(!presence.ParseFromString(bytes));
}
END_TEST

}  // namespace

int main() {
  Suite* suite = suite_create("records");
  TCase* tcase = tcase_create("records");
  for (const TTest* test :
       {load_is_the_inverse_of_encode, encode_is_sorted_and_names_each_key_once, an_empty_store_is_a_new_cluster,
        keys_sort_as_their_numbers, a_record_that_is_not_utf8_does_not_parse})
    tcase_add_test(tcase, test);
  tcase_add_loop_test(tcase, a_store_that_contradicts_itself_is_refused, 0, static_cast<int>(broken_stores().size()));
  suite_add_tcase(suite, tcase);
  SRunner* runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
