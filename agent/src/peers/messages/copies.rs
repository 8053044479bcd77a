use larder_proto::peers as proto;

use super::words::{Malformed, digest};
use crate::cluster::copies::WantedCopies;
use crate::image::MediaType;

/// The most images that are told of at a time.
pub const MOST_WANTED: usize = 256;

/// What runs here, on its way out.
#[must_use]
pub fn want_of(images: &[WantedCopies]) -> proto::WantRequest {
    let wanted = |wanted: &WantedCopies| proto::WantedImage {
        image: wanted.image.to_string(),
        target: wanted.target.to_string(),
        media_type: wanted.media_type.to_string(),
        copies: wanted.copies,
    };
    proto::WantRequest { images: images.iter().map(wanted).collect() }
}

/// What runs elsewhere.
///
/// # Errors
/// When it makes no sense, or is too much.
pub fn want(request: proto::WantRequest) -> Result<Vec<WantedCopies>, Malformed> {
    if request.images.len() > MOST_WANTED {
        return Err(Malformed("too many images"));
    }
    let wanted = |wanted: proto::WantedImage| {
        let image = wanted.image.parse().map_err(|_| Malformed("an image's name"))?;
        let media_type = MediaType::new(&wanted.media_type).ok_or(Malformed("a media type"))?;
        Ok(WantedCopies { image, target: digest(&wanted.target)?, media_type, copies: wanted.copies })
    };
    request.images.into_iter().map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn there_and_back() {
        let (image, target) = ("nginx:1.29".parse().unwrap(), Digest::of(b"x"));
        let wanted = WantedCopies { image, target, media_type: MediaType::octet_stream(), copies: 3 };
        assert_eq!(want(want_of(std::slice::from_ref(&wanted))), Ok(vec![wanted.clone()]));
        assert!(want(want_of(&vec![wanted.clone(); MOST_WANTED + 1])).is_err());
        let mut malformed = want_of(&[wanted]);
        malformed.images[0].target = "sha256:0".to_owned();
        assert!(want(malformed).is_err());
    }
}
