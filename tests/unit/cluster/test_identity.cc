// Certificates as they are made, and what lies on disk before, during and after a change.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/unit/cluster/identity_kit.h"

using namespace usblease;
using namespace usblease::cluster;
using usblease::test::Kit;
using usblease::test::TemporaryDirectory;

namespace {

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Validity past() { return {wall_clock_unix_s() - 7'200, wall_clock_unix_s() - 60}; }

Validity future() { return {wall_clock_unix_s() + 7'200, wall_clock_unix_s() + 14'400}; }

START_TEST(a_signed_host_is_itself) {
  const Kit kit;
  const Identity host = kit.host("h1");
  ck_assert_text_eq(host.host_id, std::string("h1"));
  ck_assert_text_eq(host.cluster_id, std::string("c1"));
  const auto named = certified_host(host.certificate);
  ck_assert_ok(named);
  ck_assert_text_eq(named->host_id, std::string("h1"));
  ck_assert_uint_gt(host.validity.end_unix_s, wall_clock_unix_s());
  ck_assert_uint_lt(host.validity.begin_unix_s, wall_clock_unix_s() - kClockToleranceS / 2);
}
END_TEST

START_TEST(the_signer_decides_what_is_named) {
  const Kit kit;
  const auto request = make_host_request("somebody-else");
  ck_assert_ok(request);
  const auto certificate =
      sign_host_request(kit.authority(), request->request, {"c1", "h1", {"h1.example", "10.0.0.1"}});
  ck_assert_ok(certificate);
  const auto named = certified_host(*certificate);
  ck_assert_ok(named);
  ck_assert_text_eq(named->host_id, std::string("h1"));
  for (const char* bad : {"", "a b", "-x", "*.example", "10.0.0.1:7471", "x/y"}) {
    ck_assert_fails(sign_host_request(kit.authority(), request->request, {"c1", "h1", {bad}}), ErrorCode::kBadInput,
                    "neither an IP address nor a DNS name");
  }
  ck_assert_fails(sign_host_request(kit.authority(), request->request, {"c1", "h/1", {}}), ErrorCode::kBadInput,
                  "host id");
  ck_assert_fails(sign_host_request(kit.authority(), request->request, {"c/1", "h1", {}}), ErrorCode::kBadInput,
                  "cluster id");
  ck_assert_fails(sign_host_request(kit.authority(), request->request,
                                    {"c1", "h1", std::vector<std::string>(kAlternativeNamesMax + 1, "a.example")}),
                  ErrorCode::kBadInput, "at most");
}
END_TEST

START_TEST(requests_are_checked) {
  const Kit kit;
  const auto request = make_host_request("h1");
  ck_assert_ok(request);
  ck_assert_fails(sign_host_request(kit.authority(), "", {"c1", "h1", {}}), ErrorCode::kBadInput, "request");
  ck_assert_fails(sign_host_request(kit.authority(), request->key, {"c1", "h1", {}}), ErrorCode::kBadInput, "request");
  ck_assert_fails(sign_host_request(kit.authority(), std::string(kPemBytesMax + 1, 'x'), {"c1", "h1", {}}),
                  ErrorCode::kBadInput, "too large");
  // Any changed byte of the signed part or the signature is noticed.
  const std::size_t middle = request->request.size() / 2;
  std::string changed = request->request;
  changed[middle] = changed[middle] == 'A' ? 'B' : 'A';
  ck_assert_fails(sign_host_request(kit.authority(), changed, {"c1", "h1", {}}), ErrorCode::kBadInput, "request");
  const Kit other;
  ck_assert_fails(
      sign_host_request({kit.authority().certificate, other.authority().key}, request->request, {"c1", "h1", {}}),
      ErrorCode::kRefused, "does not belong");
}
END_TEST

START_TEST(what_does_not_fit_is_refused) {
  const Kit kit;
  const Kit other;
  const Identity a = kit.host("a");
  const Identity b = kit.host("b");
  ck_assert_fails(make_identity(a.authorities, a.certificate, b.key), ErrorCode::kRefused,
                  "private key is another one");
  ck_assert_fails(make_identity(other.authority().certificate, a.certificate, a.key), ErrorCode::kRefused, "signed it");
  ck_assert_fails(make_identity("", a.certificate, a.key), ErrorCode::kRefused, "CA");
  ck_assert_fails(make_identity(a.authorities, "garbage", a.key), ErrorCode::kRefused, "cannot be read");
  ck_assert_fails(make_identity(a.authorities, a.certificate, "garbage"), ErrorCode::kRefused, "private key");
  ck_assert_fails(make_identity(a.authorities, kit.authority().certificate, kit.authority().key), ErrorCode::kRefused,
                  "does not name a host");
  const Identity old = kit.unchecked("old", "", past());
  ck_assert_fails(make_identity(old.authorities, old.certificate, old.key), ErrorCode::kRefused, "expired");
  const Identity early = kit.unchecked("early", "", future());
  ck_assert_fails(make_identity(early.authorities, early.certificate, early.key), ErrorCode::kRefused, "clock");
}
END_TEST

START_TEST(a_certificate_does_not_outlive_its_ca) {
  const auto authority = make_authority("c1", valid_from_now(1'000));
  const auto request = make_host_request("h1");
  ck_assert_ok(authority);
  ck_assert_ok(request);
  const auto certificate = sign_host_request(*authority, request->request, {"c1", "h1", {}});
  ck_assert_ok(certificate);
  const auto identity = make_identity(authority->certificate, *certificate, request->key);
  ck_assert_ok(identity);
  ck_assert_uint_le(identity->validity.end_unix_s, wall_clock_unix_s() + 1'000);
}
END_TEST

START_TEST(saved_and_loaded) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("cluster");
  ck_assert_fails(load_identity(path), ErrorCode::kNotFound, "in no cluster");
  const Kit kit;
  const Identity host = kit.host("h1");
  ck_assert_ok(save_identity(path, host));
  const auto loaded = load_identity(path);
  ck_assert_ok(loaded);
  ck_assert_text_eq(loaded->certificate, host.certificate);
  ck_assert_text_eq(loaded->key, host.key);
  struct stat status {};
  ck_assert_int_eq(stat((path + "/" + kKeyFile).c_str(), &status), 0);
  ck_assert_int_eq(status.st_mode & 0777, 0600);
  ck_assert_int_eq(stat(path.c_str(), &status), 0);
  ck_assert_int_eq(status.st_mode & 0777, 0700);
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) ++files;
  ck_assert_uint_eq(files, 3);

  ck_assert_int_eq(unlink((path + "/" + kKeyFile).c_str()), 0);
  ck_assert_fails(load_identity(path), ErrorCode::kRefused, "does not exist");
  ck_assert_int_eq(unlink((path + "/" + kCertificateFile).c_str()), 0);
  ck_assert_fails(load_identity(path), ErrorCode::kNotFound, "in no cluster");
}
END_TEST

// Each point at which a crash may cut the row of renames of a change of everything.
START_TEST(a_crash_leaves_the_old_or_the_new_one) {
  const Kit old_kit;
  const Kit new_kit("c2");
  const Identity before = old_kit.host("h1");
  const Identity after = new_kit.host("h1");
  const TemporaryDirectory directory;
  const std::string order[] = {kAuthoritiesFile, kKeyFile, kCertificateFile};
  for (int renamed = 0; renamed <= 3; ++renamed) {
    const std::string path = directory.file("at" + std::to_string(renamed));
    const std::string fresh = directory.file("new" + std::to_string(renamed));
    ck_assert_ok(save_identity(path, before));
    ck_assert_ok(save_identity(fresh, after));
    for (int i = 0; i < 3; ++i) {
      std::filesystem::rename(fresh + "/" + order[i], path + "/" + order[i] + (i < renamed ? "" : ".next"));
    }
    const auto loaded = load_identity(path);
    ck_assert_ok(loaded);
    ck_assert_text_eq(loaded->cluster_id, renamed == 0 ? before.cluster_id : after.cluster_id);
    // It was finished, so that other programs which read the files see the same.
    ck_assert_text_eq(content(path + "/" + kCertificateFile), loaded->certificate);
    ck_assert_text_eq(content(path + "/" + kKeyFile), loaded->key);
  }
}
END_TEST

START_TEST(rotation_of_the_ca) {
  const Kit old_kit;
  const Kit new_kit;
  const Kit third;
  const Identity host = old_kit.host("h1");
  const auto both = add_authority(host.authorities, new_kit.authority().certificate);
  ck_assert_ok(both);
  ck_assert_ok(make_identity(*both, host.certificate, host.key));
  const Identity rotated = new_kit.unchecked("h1");
  const auto identity = make_identity(*both, rotated.certificate, rotated.key);
  ck_assert_ok(identity);
  const auto again = add_authority(*both, old_kit.authority().certificate);
  ck_assert_ok(again);
  ck_assert_text_eq(*again, *both);
  ck_assert_fails(add_authority(*both, third.authority().certificate), ErrorCode::kBadInput, "rotation");
  const auto left = authority_of(*both, identity->certificate);
  ck_assert_ok(left);
  ck_assert_text_eq(*left, new_kit.authority().certificate);
  ck_assert_fails(make_identity(*left, host.certificate, host.key), ErrorCode::kRefused, "signed it");
}
END_TEST

START_TEST(fingerprints) {
  const Kit kit;
  const Kit other;
  const auto one = fingerprint(kit.authority().certificate);
  const auto two = fingerprint(other.authority().certificate);
  ck_assert_ok(one);
  ck_assert_ok(two);
  ck_assert_uint_eq(one->size(), 64);
  ck_assert(*one != *two);
  ck_assert_fails(fingerprint("nothing"), ErrorCode::kBadInput, "cannot be read");
}
END_TEST

START_TEST(revocations) {
  const Kit kit;
  const Identity one = kit.host("h1");
  const Identity two = kit.host("h2");
  const auto first = serial_of(one.certificate);
  const auto second = serial_of(two.certificate);
  ck_assert_ok(first);
  ck_assert_ok(second);
  ck_assert(*first != *second);
  ck_assert_uint_eq(first->size(), 32);
  for (const std::set<std::string>& serials :
       {std::set<std::string>(), std::set<std::string>{*first}, std::set<std::string>{*first, *second}}) {
    const auto list = make_revocations(kit.authority(), serials);
    ck_assert_ok(list);
    const auto read = revoked_in(*list);
    ck_assert_ok(read);
    ck_assert(*read == serials);
  }
  // One that names nobody can be made with any certificate: it stands for the CA's until that comes.
  const auto own = make_revocations({one.certificate, one.key}, {});
  ck_assert_ok(own);
  ck_assert(revoked_in(*own)->empty());
  ck_assert_fails(revoked_in("nonsense"), ErrorCode::kBadInput, "cannot be read");
  ck_assert_fails(revoked_in(one.certificate), ErrorCode::kBadInput, "cannot be read");
  ck_assert_fails(revoked_in(std::string(kPemBytesMax + 1, 'x')), ErrorCode::kBadInput, "too large");
  ck_assert_fails(serial_of("nonsense"), ErrorCode::kBadInput, "");
  // Many: a thousand hosts, each of which was removed.
  std::set<std::string> many;
  for (int i = 0; i < 1'000; ++i) many.insert("40" + std::string(26, 'a') + std::to_string(1'000 + i));
  const auto large = make_revocations(kit.authority(), many);
  ck_assert_ok(large);
  ck_assert_uint_le(large->size(), kPemBytesMax);
  ck_assert(*revoked_in(*large) == many);
}
END_TEST

START_TEST(small_files) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("");
  ck_assert_ok(write_durably(path, "ca.key", "one", 0600));
  ck_assert_ok(write_durably(path, "ca.key", "two", 0600));
  const auto text = read_small_file(path, "ca.key");
  ck_assert_ok(text);
  ck_assert_text_eq(*text, std::string("two"));
  ck_assert_fails(read_small_file(path, "absent"), ErrorCode::kNotFound, "does not exist");
  ck_assert_fails(write_durably(path, "x", std::string(kPemBytesMax + 1, 'x'), 0600), ErrorCode::kBadInput, "at most");
  ck_assert(!directory.write("large", std::string(kPemBytesMax + 1, 'x')).empty());
  ck_assert_fails(read_small_file(path, "large"), ErrorCode::kRefused, "larger");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("identity");
  TCase* const all = tcase_create("identity");
  tcase_add_test(all, a_signed_host_is_itself);
  tcase_add_test(all, the_signer_decides_what_is_named);
  tcase_add_test(all, requests_are_checked);
  tcase_add_test(all, what_does_not_fit_is_refused);
  tcase_add_test(all, a_certificate_does_not_outlive_its_ca);
  tcase_add_test(all, saved_and_loaded);
  tcase_add_test(all, a_crash_leaves_the_old_or_the_new_one);
  tcase_add_test(all, rotation_of_the_ca);
  tcase_add_test(all, fingerprints);
  tcase_add_test(all, revocations);
  tcase_add_test(all, small_files);
  suite_add_tcase(suite, all);
  return usblease::test::run_suite(suite);
}
