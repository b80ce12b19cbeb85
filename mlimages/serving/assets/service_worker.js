// Keeps every file of this page, so that it opens without a network. VERSION changes with any of the files.
const FILES = /* files */, VERSION = /* version */;
const OWN = "mlimages " + self.registration.scope + " ";

self.addEventListener("install", event => event.waitUntil((async () => {
  const cache = await caches.open(OWN + VERSION);
  await cache.addAll(FILES.map(file => new Request(file, {cache: "no-cache"})));
  await self.skipWaiting();
})()));

self.addEventListener("activate", event => event.waitUntil((async () => {
  const old = (await caches.keys()).filter(name => name.startsWith(OWN) && name !== OWN + VERSION);
  await Promise.all(old.map(name => caches.delete(name)));
  await self.clients.claim();
})()));

self.addEventListener("fetch", event => {
  const wanted = event.request.url.startsWith(self.registration.scope + "index.html") ? "./" : event.request;
  event.respondWith((async () => {
    const cache = await caches.open(OWN + VERSION);
    return await cache.match(wanted, {ignoreSearch: true}) || fetch(event.request);
  })());
});
