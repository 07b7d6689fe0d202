#include <cstdlib>

#include "daemon/store/envelope.h"
#include "daemon/store/store.h"
#include "tests/store/with_check.h"

using namespace usblease;
using namespace usblease::store;
using usblease::store_test::expect_text;

namespace {

void expect_bad(const std::string& key, const std::string& sealed, const std::string& word) {
  const auto opened = unseal(key, sealed);
  ck_assert_msg(!opened, "accepted; expected: %s", word.c_str());
  ck_assert(opened.error().code == ErrorCode::kRefused);
  const std::string& message = opened.error().message;
  ck_assert_msg(message.find(key) != std::string::npos, "no key in: %s", message.c_str());
  ck_assert_msg(message.find(word) != std::string::npos, "no \"%s\" in: %s", word.c_str(), message.c_str());
}

// The layout is on disks: it must not change by accident.
START_TEST(layout_is_fixed) {
  const std::string expected("UL\x01\x29\x9f\xc9\x82value", 12);
  const std::string sealed = seal("device/dongle", "value");
  ck_assert_uint_eq(sealed.size(), 12);
  expect_text(sealed.substr(0, 3), "UL\x01");
  expect_text(sealed.substr(7), "value");
  ck_assert_msg(sealed == expected, "checksum %02x%02x%02x%02x", static_cast<unsigned char>(sealed[3]),
                static_cast<unsigned char>(sealed[4]), static_cast<unsigned char>(sealed[5]),
                static_cast<unsigned char>(sealed[6]));
}
END_TEST

START_TEST(round_trip) {
  for (const std::string& payload :
       {std::string(), std::string(1, '\0'), std::string("text"), std::string(kValueMax, '\xff')}) {
    const auto opened = unseal("key", seal("key", payload));
    ck_assert(opened && *opened == payload);
  }
}
END_TEST

START_TEST(every_flipped_bit_is_found) {
  const std::string sealed = seal("key", std::string("some payload \0 with a NUL", 25));
  for (std::size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    std::string flipped = sealed;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    ck_assert_msg(!unseal("key", flipped), "bit %zu", bit);
  }
}
END_TEST

START_TEST(every_cut_is_found) {
  const std::string sealed = seal("key", "some payload");
  for (std::size_t size = 0; size < sealed.size(); ++size) expect_bad("key", sealed.substr(0, size), "damaged");
  expect_bad("key", sealed + '\0', "damaged");
  expect_bad("key", sealed + sealed, "damaged");
}
END_TEST

START_TEST(another_key_is_found) {
  const std::string sealed = seal("device/a", "payload");
  expect_bad("device/b", sealed, "another key's record");
  // The end of the key and the beginning of the payload are told apart.
  ck_assert(seal("ab", "c").substr(3, 4) != seal("a", "bc").substr(3, 4));
}
END_TEST

START_TEST(newer_version_says_so) {
  std::string sealed = seal("key", "payload");
  sealed[2] = 2;
  expect_bad("key", sealed, "newer");
  sealed[2] = 0;
  expect_bad("key", sealed, "no envelope version 0");
}
END_TEST

START_TEST(bounds) {
  expect_bad("key", "UL\x01" + std::string(kValueMax + 5, 'x'), "more than a record can have");
  expect_bad("key", "", "less than its envelope");
  expect_bad("key",
             "XY\x01"
             "123456789",
             "does not begin");
}
END_TEST

START_TEST(bounds_of_a_transaction) {
  ck_assert(!out_of_bounds({}));
  ck_assert(!out_of_bounds({{{"k", Guard::What::kModRevision, 0}}, {{"k", "v", false}}}));
  ck_assert(out_of_bounds({{{"", Guard::What::kModRevision, 0}}, {}}));
  ck_assert(out_of_bounds({{}, {{"k", "v", false}, {"k", std::nullopt, false}}}));
  ck_assert(out_of_bounds({{}, {{"k", std::string(kValueMax + 1, 'v'), false}}}));
  ck_assert(prefix_end("") == std::nullopt);
  ck_assert(prefix_end("\xff\xff") == std::nullopt);
  ck_assert(prefix_end("a\xff") == "b");
  ck_assert(prefix_end("a/") == "a0");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("envelope");
  TCase* const tcase = tcase_create("envelope");
  for (const TTest* test : {layout_is_fixed, round_trip, every_flipped_bit_is_found, every_cut_is_found,
                            another_key_is_found, newer_version_says_so, bounds, bounds_of_a_transaction}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
  SRunner* const runner = srunner_create(suite);
  srunner_run_all(runner, CK_NORMAL);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
