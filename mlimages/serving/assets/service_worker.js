// Caches every file of the page, so that the page works offline. VERSION changes with any of the files.
// FILES has the hash of each file: of an incomplete upload nothing is cached, and the previous version continues to work.
const FILES = /* files */, VERSION = /* version */;
const CACHE_PREFIX = "mlimages " + self.registration.scope + " ";

self.addEventListener("install", event => event.waitUntil((async () => {
  const cache = await caches.open(CACHE_PREFIX + VERSION);
  await cache.addAll(Object.entries(FILES).map(([file, integrity]) => new Request(file, {cache: "no-cache", integrity})));
  await self.skipWaiting();
})()));

self.addEventListener("activate", event => event.waitUntil((async () => {
  const old = (await caches.keys()).filter(name => name.startsWith(CACHE_PREFIX) && name !== CACHE_PREFIX + VERSION);
  await Promise.all(old.map(name => caches.delete(name)));
  await self.clients.claim();
})()));

self.addEventListener("fetch", event => {
  const request = event.request.url.startsWith(self.registration.scope + "index.html") ? "./" : event.request;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE_PREFIX + VERSION);
    return await cache.match(request, {ignoreSearch: true}) || fetch(event.request);
  })());
});
