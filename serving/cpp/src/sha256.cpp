#include "sha256.hpp"

#include <openssl/evp.h>

#include <array>
#include <fstream>
#include <memory>
#include <vector>

#include "flowturbo/error.hpp"

namespace flowturbo {
namespace {

constexpr std::size_t chunk_bytes = std::size_t{1} << 16U;

void require(bool succeeded) {
  if (!succeeded) throw BackendError("OpenSSL's SHA-256 failed; check the installation of libcrypto");
}

std::string hex(const unsigned char* bytes, unsigned count) {
  constexpr const char* digits = "0123456789abcdef";
  std::string text;
  for (unsigned index = 0; index < count; ++index) {
    text += digits[bytes[index] >> 4U];
    text += digits[bytes[index] & 0xFU];
  }
  return text;
}

}  // namespace

std::string sha256(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  require(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  std::vector<char> chunk(chunk_bytes);
  while (in) {
    in.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    require(EVP_DigestUpdate(context.get(), chunk.data(), static_cast<std::size_t>(in.gcount())) == 1);
  }
  if (!in.eof()) throw BundleError(file.string() + ": cannot be read");
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  require(EVP_DigestFinal_ex(context.get(), digest.data(), &size) == 1);
  return hex(digest.data(), size);
}

}  // namespace flowturbo
